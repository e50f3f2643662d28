"""Token grids: one for each block and every thread, and no detour where nobody looks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests._helpers.tiny import on_models, random_images


@on_models
def test_one_token_grid_for_every_thread(clip):
    """Asked for at once from many threads, a block has one grid, and each thread's hook fires."""
    images = random_images(clip)
    seen = []

    def look(_):
        grid = clip.token_grid(0)
        grid.register_forward_hook(lambda *args: seen.append(args[2].shape))
        return grid

    with ThreadPoolExecutor(8) as pool:
        assert len({id(grid) for grid in pool.map(look, range(8))}) == 1
    clip(images)
    assert len(seen) == 8


def test_a_token_grid_nobody_looks_at_changes_nothing(clip):
    """The last block is called whole, which of a ResNet's pooling the detour does not."""
    fired = []
    handle = clip.tower.blocks[-1].register_forward_hook(lambda *_: fired.append(1))
    clip.token_grid(-1)
    clip(random_images(clip))
    handle.remove()
    assert fired == [1]
