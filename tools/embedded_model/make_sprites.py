"""Draw the embedded model's nouns from the Noto Color Emoji font into one file of sprites.

    python -m tools.embedded_model.make_sprites NotoColorEmoji.ttf

`sprites.png` and `nouns.txt` were written from Debian's fonts-noto-color-emoji 2.042.
"""

import sys
from importlib.resources import files

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from captum_clip_surgery.demo._scenes import SPRITE_COLUMNS, SPRITE_SIDE

BITMAP_SIZE = 109  # the only size of the font's bitmaps

EMOJI = {
    # animals
    "dog": "🐕", "cat": "🐈", "horse": "🐎", "cow": "🐄", "pig": "🐖", "sheep": "🐑",
    "elephant": "🐘", "giraffe": "🦒", "monkey": "🐒", "rabbit": "🐇", "rooster": "🐓",
    "duck": "🦆", "owl": "🦉", "frog": "🐸", "turtle": "🐢", "snake": "🐍",
    "dinosaur": "🦕", "whale": "🐳", "fish": "🐟", "octopus": "🐙", "snail": "🐌",
    "butterfly": "🦋", "bee": "🐝", "ladybug": "🐞", "spider": "🕷", "crab": "🦀", "shark": "🦈",
    "penguin": "🐧", "lion": "🦁", "tiger": "🐅", "zebra": "🦓",
    "hedgehog": "🦔", "squirrel": "🐿", "unicorn": "🦄", "dragon": "🐉",
    "bat": "🦇", "fox": "🦊", "panda": "🐼", "koala": "🐨", "flamingo": "🦩", "peacock": "🦚",
    "parrot": "🦜",
    # food
    "apple": "🍎", "banana": "🍌", "grapes": "🍇", "watermelon": "🍉", "orange": "🍊",
    "pineapple": "🍍", "strawberry": "🍓", "cherries": "🍒", "pear": "🍐",
    "kiwi": "🥝", "avocado": "🥑", "eggplant": "🍆", "carrot": "🥕", "corn": "🌽",
    "broccoli": "🥦", "mushroom": "🍄", "bread": "🍞", "cheese": "🧀", "pizza": "🍕",
    "hamburger": "🍔", "fries": "🍟", "taco": "🌮", "donut": "🍩", "cookie": "🍪", "cake": "🎂",
    "lollipop": "🍭", "coffee": "☕", "beer": "🍺", "wine": "🍷", "pretzel": "🥨",
    "croissant": "🥐", "popcorn": "🍿",
    # plants and sky
    "rose": "🌹", "sunflower": "🌻", "cactus": "🌵", "tree": "🌳",
    "leaf": "🍁", "clover": "🍀", "sun": "🌞", "moon": "🌙", "star": "⭐", "rainbow": "🌈",
    "snowflake": "❄", "fire": "🔥", "globe": "🌍",
    # vehicles
    "car": "🚗", "bus": "🚌", "train": "🚂", "truck": "🚚", "tractor": "🚜", "bicycle": "🚲",
    "motorcycle": "🏍", "airplane": "✈", "helicopter": "🚁", "rocket": "🚀",
    "ship": "🚢", "ambulance": "🚑", "balloon": "🎈",
    # things
    "clock": "⏰", "phone": "📱", "laptop": "💻", "camera": "📷",
    "television": "📺", "radio": "📻", "lightbulb": "💡", "candle": "🕯", "book": "📖",
    "pencil": "✏", "scissors": "✂", "key": "🔑", "lock": "🔒",
    "hammer": "🔨", "gear": "⚙", "microscope": "🔬", "telescope": "🔭",
    "umbrella": "☂", "bell": "🔔", "guitar": "🎸", "piano": "🎹",
    "trumpet": "🎺", "drum": "🥁", "microphone": "🎤", "headphones": "🎧",
    "football": "🏈", "basketball": "🏀", "dice": "🎲", "trophy": "🏆", "crown": "👑",
    "hat": "🎩", "shoe": "👟", "boot": "👢", "shirt": "👕", "glasses": "👓",
    "backpack": "🎒", "gift": "🎁", "anchor": "⚓", "chair": "🪑",
    "bed": "🛏", "door": "🚪", "house": "🏠", "castle": "🏰", "tent": "⛺",
    "snowman": "⛄", "robot": "🤖", "ghost": "👻", "skull": "💀", "pumpkin": "🎃", "heart": "❤",
    "basket": "🧺", "broom": "🧹", "axe": "🪓", "shield": "🛡", "bomb": "💣",
    "kite": "🪁",
}  # fmt: skip


def draw(emoji: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Draw an emoji, cropped to its visible pixels and centered on a transparent square."""
    canvas = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(canvas).text((10, 10), emoji, font=font, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise ValueError(f"the font has no glyph for {emoji!r}")
    image = canvas.crop(box)
    scale = SPRITE_SIDE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (SPRITE_SIDE, SPRITE_SIDE))
    square.paste(image, ((SPRITE_SIDE - width) // 2, (SPRITE_SIDE - height) // 2))
    return square


def main(font_path: str) -> None:
    """Write `sprites.png` and `nouns.txt` of the package."""
    font = ImageFont.truetype(font_path, BITMAP_SIZE)
    rows = -(-len(EMOJI) // SPRITE_COLUMNS)
    atlas = Image.new("RGBA", (SPRITE_COLUMNS * SPRITE_SIDE, rows * SPRITE_SIDE))
    for index, emoji in enumerate(EMOJI.values()):
        row, column = divmod(index, SPRITE_COLUMNS)
        atlas.paste(draw(emoji, font), (column * SPRITE_SIDE, row * SPRITE_SIDE))
    pixels = np.asarray(atlas).copy()
    pixels[pixels[..., 3] == 0] = 0  # invisible colors only cost bytes
    folder = files("captum_clip_surgery.demo")
    Image.fromarray(pixels).save(str(folder / "sprites.png"), optimize=True)
    (folder / "nouns.txt").write_text("\n".join(EMOJI) + "\n")  # type: ignore[attr-defined]


if __name__ == "__main__":
    main(sys.argv[1])
