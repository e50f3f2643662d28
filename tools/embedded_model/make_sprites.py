"""Draw the nouns of the embedded model's world from the Noto Color Emoji font into one file.

    python -m tools.embedded_model.make_sprites NotoColorEmoji.ttf

Run once by the project (Debian's fonts-noto-color-emoji 2.042); `sprites.png` is what it wrote.
"""

import sys
from importlib.resources import files

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from captum_clip_surgery.demo.scenes import SPRITE_COLUMNS, SPRITE_SIDE

BITMAP_SIZE = 109  # the one size at which the font holds its bitmaps

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
    """One emoji, cropped to what is visible and centred on a transparent square."""
    canvas = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(canvas).text((10, 10), emoji, font=font, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise ValueError(f"the font has no picture for {emoji!r}")
    picture = canvas.crop(box)
    scale = SPRITE_SIDE / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (SPRITE_SIDE, SPRITE_SIDE))
    square.paste(picture, ((SPRITE_SIDE - width) // 2, (SPRITE_SIDE - height) // 2))
    return square


def main(font_path: str) -> None:
    font = ImageFont.truetype(font_path, BITMAP_SIZE)
    rows = -(-len(EMOJI) // SPRITE_COLUMNS)
    atlas = Image.new("RGBA", (SPRITE_COLUMNS * SPRITE_SIDE, rows * SPRITE_SIDE))
    for index, emoji in enumerate(EMOJI.values()):
        row, column = divmod(index, SPRITE_COLUMNS)
        atlas.paste(draw(emoji, font), (column * SPRITE_SIDE, row * SPRITE_SIDE))
    pixels = np.asarray(atlas).copy()
    pixels[pixels[..., 3] == 0] = 0  # invisible colours only cost bytes
    folder = files("captum_clip_surgery.demo")
    Image.fromarray(pixels).save(str(folder / "sprites.png"), optimize=True)
    (folder / "nouns.txt").write_text("\n".join(EMOJI) + "\n")  # type: ignore[attr-defined]


if __name__ == "__main__":
    main(sys.argv[1])
