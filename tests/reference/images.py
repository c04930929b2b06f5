"""Small images of every kind with the pixels that Pillow decodes from them, and Pillow's resizes.

Writes tests/data/images/: NAME.ext with NAME.ppm beside it (Image.open(...).convert("RGB")), and
resize_*.ppm. Run from the repository root with Pillow 13 and NumPy: python tests/reference/images.py
"""

import io
import pathlib
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

OUT = pathlib.Path("tests/data/images")
RANDOM = np.random.default_rng(7)


def picture(height, width, noise=24):
    """Smooth gradients, edges and some noise: what a photo asks of a codec."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    channels = [
        128 + 100 * np.sin(9 * x + 3 * y),
        255 * np.clip(x + y, 0, 1),
        128 + 90 * np.cos(7 * y - 11 * x * y),
    ]
    pixels = np.stack(channels, 2)
    pixels[(np.abs(x - 0.5) + np.abs(y - 0.4)) < 0.17] = (250, 20, 60)
    pixels += RANDOM.normal(0, noise / 3, pixels.shape)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def write_ppm(path, rgb):
    height, width, _ = rgb.shape
    path.write_bytes(b"P6\n%d %d\n255\n" % (width, height) + rgb.tobytes())


def decoded(path):
    return np.asarray(Image.open(path).convert("RGB"))


def keep(name, data):
    path = OUT / name
    path.write_bytes(data)
    write_ppm(path.with_suffix(".ppm"), decoded(path))


def save(name, image, **options):
    buffer = io.BytesIO()
    kind = {"jpg": "jpeg", "tif": "tiff"}
    suffix = name.split(".")[-1]
    image.save(buffer, kind.get(suffix, suffix), **options)
    keep(name, buffer.getvalue())
    return buffer.getvalue()


def png(pixels, bit_depth, color_type, interlaced=False, extra=()):
    """A PNG of [H, W, C] samples; Pillow writes neither 16-bit colours nor interlaced files."""
    height, width, _ = pixels.shape

    def chunk(kind, body):
        return (struct.pack(">I", len(body)) + kind + body +
                struct.pack(">I", zlib.crc32(kind + body)))

    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
                  (1, 0, 2, 1)]
    raw = b""
    for top, left, down, right in passes:
        part = pixels[top::down, left::right]
        if part.size:
            part = part.astype(">u2" if bit_depth == 16 else "u1")
            raw += b"".join(b"\0" + row.tobytes() for row in part)
    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, interlaced)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) +
            b"".join(chunk(kind, body) for kind, body in extra) +
            chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b""))


def tiff16(pixels):
    """A 16-bit TIFF of [H, W, C] samples, big endian, one strip."""
    height, width, channels = pixels.shape
    data = pixels.astype(">u2").tobytes()
    count = 10
    after = 8 + 2 + count * 12 + 4
    bits_at = after
    data_at = after + 2 * channels
    entries = [(256, 3, 1, width << 16), (257, 3, 1, height << 16), (258, 3, channels, bits_at),
               (259, 3, 1, 1 << 16), (262, 3, 1, 2 << 16), (273, 4, 1, data_at),
               (277, 3, 1, channels << 16), (278, 3, 1, height << 16), (279, 4, 1, len(data)),
               (284, 3, 1, 1 << 16)]
    directory = struct.pack(">H", count) + b"".join(struct.pack(">HHII", *e) for e in entries)
    return (b"MM\0*" + struct.pack(">I", 8) + directory + b"\0\0\0\0" +
            struct.pack(">%dH" % channels, *[16] * channels) + data)


def exif(orientation):
    data = Image.Exif()
    data[274] = orientation
    return data.tobytes()


def make_jpeg():
    rgb = Image.fromarray(picture(37, 53))
    save("jpeg_444.jpg", rgb, quality=90, subsampling=0)
    save("jpeg_422.jpg", rgb, quality=90, subsampling=1)
    save("jpeg_420.jpg", rgb, quality=75, subsampling=2)
    save("jpeg_progressive.jpg", rgb, quality=85, progressive=True)
    save("jpeg_restart.jpg", rgb, quality=80, restart_marker_blocks=3)
    save("jpeg_rgb.jpg", rgb, quality=90, keep_rgb=True)
    save("jpeg_grey.jpg", rgb.convert("L"), quality=85)
    save("jpeg_exif6.jpg", rgb, quality=90, exif=exif(6))
    cmyk = np.concatenate([picture(37, 53), picture(37, 53)[..., :1]], 2)
    data = save("jpeg_cmyk.jpg", Image.fromarray(cmyk, "CMYK"), quality=90)
    # The last byte of the Adobe segment says how the four channels are to be read: 2 = YCCK.
    at = data.index(b"Adobe") + 11
    keep("jpeg_ycck.jpg", data[:at] + b"\2" + data[at + 1:])
    # Photo sized, for resizing and for the benchmark; a checksum stands for its 560 KB of pixels.
    buffer = io.BytesIO()
    Image.fromarray(picture(375, 500)).save(buffer, "jpeg", quality=85)
    (OUT / "photo.jpg").write_bytes(buffer.getvalue())
    pixels = decoded(OUT / "photo.jpg")
    (OUT / "photo.crc32").write_text("%d\n" % zlib.crc32(pixels.tobytes()))


def make_png():
    pixels = picture(29, 41)
    rgb = Image.fromarray(pixels)
    alpha = Image.fromarray(RANDOM.integers(0, 256, (29, 41), dtype=np.uint8))
    grey = rgb.convert("L")
    save("png_rgb.png", rgb)
    save("png_grey.png", grey)
    save("png_1bit.png", grey.convert("1"))
    save("png_palette.png", rgb.quantize(200))
    save("png_palette4.png", rgb.quantize(11))
    save("png_palette_trns.png", rgb.quantize(200), transparency=bytes(range(0, 250, 25)))
    save("png_rgb_trns.png", rgb, transparency=tuple(int(v) for v in pixels[3, 4]))
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    save("png_rgba.png", rgba)
    save("png_grey_alpha.png", Image.merge("LA", (grey, alpha)))
    # Metadata, here with a broken colour profile, must change nothing and print nothing.
    metadata = [(b"gAMA", struct.pack(">I", 100000)), (b"iCCP", b"bad\0\0junk")]
    data = png(pixels, 8, 2, extra=metadata)
    (OUT / "png_metadata.png").write_bytes(data)
    write_ppm(OUT / "png_metadata.ppm", pixels)
    keep("png_interlaced.png", png(pixels, 8, 2, interlaced=True))
    deep = RANDOM.integers(0, 65536, (29, 41, 4))
    deep[:12] //= 256
    keep("png_grey16.png", png(deep[..., :1], 16, 0))
    keep("png_rgb16.png", png(deep[..., :3], 16, 2))
    keep("png_grey_alpha16.png", png(deep[..., :2], 16, 4))
    keep("png_rgba16.png", png(deep, 16, 6))
    save("png_exif5.png", rgb, exif=exif(5))


def make_webp():
    rgb = Image.fromarray(picture(35, 45))
    rgba = rgb.copy()
    rgba.putalpha(Image.fromarray(RANDOM.integers(0, 256, (35, 45), dtype=np.uint8)))
    save("webp_lossy.webp", rgb, quality=80)
    save("webp_lossless.webp", rgb, lossless=True)
    save("webp_lossy_alpha.webp", rgba, quality=80)
    save("webp_lossless_alpha.webp", rgba, lossless=True, exact=True)
    save("webp_exif8.webp", rgb, quality=90, exif=exif(8))


def make_bmp():
    rgb = Image.fromarray(picture(19, 27))
    save("bmp_rgb.bmp", rgb)
    save("bmp_rgba.bmp", rgb.convert("RGBA"))
    save("bmp_grey.bmp", rgb.convert("L"))
    save("bmp_palette.bmp", rgb.quantize(60))
    save("bmp_1bit.bmp", rgb.convert("1"))


def make_tiff():
    pixels = picture(23, 31)
    rgb = Image.fromarray(pixels)
    alpha = Image.fromarray(RANDOM.integers(0, 256, (23, 31), dtype=np.uint8))
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        save("tiff_rgb_%s.tif" % compression.split("_")[-1], rgb,
             compression=None if compression == "raw" else compression)
    save("tiff_grey.tif", rgb.convert("L"))
    save("tiff_1bit.tif", rgb.convert("1"))
    save("tiff_palette.tif", rgb.quantize(90))
    save("tiff_rgba.tif", rgba, compression="tiff_lzw")
    save("tiff_cmyk.tif", Image.fromarray(
        np.concatenate([pixels, picture(23, 31)[..., :1]], 2), "CMYK"))
    deep = RANDOM.integers(0, 65536, (23, 31, 3)).astype(np.uint16)
    deep[:9] //= 256
    save("tiff_grey16.tif", Image.fromarray(deep[..., 0]))
    keep("tiff_rgb16.tif", tiff16(deep))
    save("tiff_orientation6.tif", rgb, tiffinfo={274: 6})


def make_turned():
    for name in ("jpeg_exif6.jpg", "png_exif5.png", "webp_exif8.webp"):
        turned = ImageOps.exif_transpose(Image.open(OUT / name)).convert("RGB")
        write_ppm(OUT / (name.split(".")[0] + "_turned.ppm"), np.asarray(turned))


def make_resizes():
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    noise = RANDOM.integers(0, 256, (61, 97, 3), dtype=np.uint8)
    sources = {"noise": noise, "smooth": picture(61, 97, noise=6)}
    for name, pixels in sources.items():
        write_ppm(OUT / ("resize_%s.ppm" % name), pixels)
        for kind, code in filters.items():
            for height, width in ((24, 24), (61, 40), (17, 97), (83, 131), (7, 150), (150, 7), (1, 1)):
                result = np.asarray(Image.fromarray(pixels).resize((width, height), code))
                write_ppm(OUT / ("resize_%s_%s_%dx%d.ppm" % (name, kind, height, width)), result)
    photo = Image.open(OUT / "photo.jpg").convert("RGB")
    write_ppm(OUT / "resize_photo_bicubic_224x224.ppm",
              np.asarray(photo.resize((224, 224), filters["bicubic"])))
    # torchvision's Resize((256, 256), BICUBIC), which is Pillow's, and CenterCrop(224).
    centre = np.asarray(photo.resize((256, 256), filters["bicubic"]).crop((16, 16, 240, 240)))
    (OUT / "photo_256_crop_224.crc32").write_text("%d\n" % zlib.crc32(centre.tobytes()))


def make_npz():
    np.savez(OUT / "small.npz",
             images=np.arange(180, dtype=np.uint8).reshape(3, 4, 5, 3),
             grey=np.arange(60, dtype=np.uint8).reshape(3, 4, 5),
             labels=np.array([2, 0, 1], np.int32),
             column=np.array([[2], [0], [1]], np.uint8),
             real=np.zeros(3, np.float32))


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    for old in OUT.iterdir():
        old.unlink()
    make_jpeg()
    make_png()
    make_webp()
    make_bmp()
    make_tiff()
    make_turned()
    make_resizes()
    make_npz()
