"""Writes the first test images of Fashion-MNIST as PNG files for `convpass predict` to read.

demo_images.py IDX_FOLDER OUT COUNT. Standard library only.
"""

import gzip
import struct
import sys
import zlib
from pathlib import Path

NAMES = "t-shirt trouser pullover dress coat sandal shirt sneaker bag boot".split()


def chunk(kind: bytes, data: bytes) -> bytes:
    """One PNG chunk: length, kind, data, checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels: bytes, side: int) -> bytes:
    """An 8-bit grey PNG of side x side pixels."""
    rows = b"".join(b"\0" + pixels[y * side : (y + 1) * side] for y in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def main() -> None:
    folder, out, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    out.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as images:
        images.read(16)
        with gzip.open(folder / "t10k-labels-idx1-ubyte.gz") as labels:
            labels.read(8)
            for i in range(count):
                label = labels.read(1)[0]
                (out / f"{i}-{label}-{NAMES[label]}.png").write_bytes(png(images.read(784), 28))


if __name__ == "__main__":
    main()
