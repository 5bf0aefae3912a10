"""Map the 894 words of NYU Depth v2 to 40 and to 13 classes.

The 40 classes are those of Gupta, Arbelaez and Malik (CVPR 2013): 37 frequent words, each a class of its own, and
three classes for the rest: other structure, other furniture, other props. The four kinds of things behind those
three (floor, structure, furniture, props) are from Silberman, Hoiem, Kohli and Fergus (ECCV 2012). The 13 classes
are those of Couprie, Farabet, Najman and LeCun (ICLR 2013), each a union of some of the 40.

The tables are facts of `classMapping40.mat` (2013) and `class13Mapping.mat` (2015), both public in
github.com/ankurhanda/nyuv2-meta-data, spelt as there ("refridgerator", "desser"): the data set spells them so.
"""

OTHER_STRUCTURE, OTHER_FURNITURE, OTHER_PROP = "otherstructure", "otherfurniture", "otherprop"

CLASSES_40 = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter",
    "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat", "clothes", "ceiling", "books",
    "refridgerator", "television", "paper", "towel", "shower curtain", "box", "whiteboard", "person", "night stand",
    "toilet", "sink", "lamp", "bathtub", "bag", OTHER_STRUCTURE, OTHER_FURNITURE, OTHER_PROP,
)
CLASSES_13 = (
    "bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa", "table", "tv", "wall",
    "window",
)
# Class of the 13 -> the classes of the 40 that it merges, beside the one of its own name; others are "objects".
MERGED = {
    "floor": ("floor mat",), "table": ("desk",), "tv": ("television",), "wall": ("door",),
    "window": ("blinds", "curtain"),
    "furniture": (
        "cabinet", "bookshelf", "counter", "shelves", "dresser", "refridgerator", "night stand", OTHER_FURNITURE,
    ),
}  # fmt: skip
CLASS_13_OF_40 = {
    name: next((merged for merged in CLASSES_13 if name in (merged, *MERGED.get(merged, ()))), "objects")
    for name in CLASSES_40
}

# 68 words
STRUCTURE_WORDS = """
    air conditioner, air duct, air vent, baby gate, banister, bar, blackboard, board, cable rack, chandelier, chimney,
    circuit breaker box, classroom board, column, curtain rod, dishwasher, door window reflection, door curtain,
    door facing trimreflection, door frame, door way, door way arch, doorreflection, drain, electric box, fireplace,
    fish tank, floor trim, garage door, gate, glass, glass pane, glass rack, green screen, grill, iron grill,
    kitchen island, light, light switch, light switchreflection, lighting track, mail shelf, mailshelf, mantel, mantle,
    oven, phone jack, projector screen, railing, range hood, reflection of window shutters, shower base, spice rack,
    spice stand, stairs, storage space, stove, towel rod, track light, tree sculpture, wall stand, water fountain,
    window box, window cover, window frame, window seat, window shelf, wooden pillar
"""
# 82 words
FURNITURE_WORDS = """
    baby chair, barrel, bassinet, bean bag, bench, bookrack, bunk bed, cat bed, cat cage, chart stand, chest,
    cloth drying stand, clothing dryer, clothing drying rack, clothing hamper, clothing hanger, clothing washer,
    coffee table, cradle, crate, crib, desk drawer, desser, display board, display case, dog bed, dog cage, doily,
    doll house, dolly, drawer, drying rack, drying stand, educational display, excercise equipment, excercise machine,
    file box, file stand, filing shelves, flipboard, foosball table, foot rest, furnace, furniture, garbage bin,
    grandfather clock, headboard, heater, indoor fountain, ironing board, ladder, lectern, luggage rack, mattress,
    music stand, ottoman, piano, piano bench, ping pong table, playpen, pool table, radiator, room divider, slide,
    stacked chairs, stacked plastic racks, stand, storage chest, storage rack, storage shelvesbooks, stroller, tent,
    toys rack, toys shelf, trampoline, treadmill, trolly, tv stand, wall divider, wardrobe, washing machine,
    water cooler
"""


def split_words(text: str) -> frozenset[str]:
    return frozenset(normalise(word) for word in text.split(","))


def normalise(word: str) -> str:
    """`"door  window  reflection"`, as the data set spells it, is `"door window reflection"`."""
    return " ".join(word.split()).casefold()


OTHERS = dict.fromkeys(split_words(STRUCTURE_WORDS), OTHER_STRUCTURE)
OTHERS |= dict.fromkeys(split_words(FURNITURE_WORDS), OTHER_FURNITURE)


def class_of_40(word: str) -> str:
    """The class of the 40 that a word of the data set belongs to; "otherprop" if the tables do not list it."""
    word = normalise(word)
    return word if word in CLASSES_40 else OTHERS.get(word, OTHER_PROP)


def class_of_13(word: str) -> str:
    """The class of the 13 that a word of the data set belongs to; "objects" if the tables do not list it."""
    return CLASS_13_OF_40[class_of_40(word)]
