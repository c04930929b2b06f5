"""What timm's RandAugment hands to its operations, at several magnitudes and with both signs.

Writes tests/data/rand_augment.txt, lines of `operation increasing negative magnitude argument`, in timm's order of the
operations. Run from the repository root with timm 1.0: python tests/reference/rand_augment.py
"""

import pathlib

from timm.data import auto_augment

MAGNITUDES = [0.0, 0.3, 2.5, 4.999999, 5.0, 6.4137, 7.0, 9.99, 10.0, 12.7, 20.0]

lines = []
for increasing, names in enumerate((auto_augment._RAND_TRANSFORMS, auto_augment._RAND_INCREASING_TRANSFORMS)):
    for operation, name in enumerate(names):
        for negative in (0, 1):
            auto_augment._randomly_negate = lambda value: -value if negative else value
            for magnitude in MAGNITUDES:
                level_to_arg = auto_augment.LEVEL_TO_ARG[name]
                argument = level_to_arg(magnitude, {})[0] if level_to_arg else 0
                lines.append(f"{operation} {increasing} {negative} {magnitude} {argument!r}\n")
pathlib.Path("tests/data/rand_augment.txt").write_text("".join(lines))
