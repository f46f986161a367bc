"""From an image file to a decoded, corrected, upright picture; `clipcls.images.fit` fits it to a model's input.

What open_clip's own transform gets silently wrong is corrected before it: EXIF orientation is applied (`orientation`),
palettes become colours before anything is resized, transparency is laid on white, 16-bit and float pictures are scaled
to 8 bits (`colour`). Colour profiles (ICC) aren't applied; CLIP's training and open_clip don't either. Of an animation
or a multi-page file, the first frame counts, unless frames by time are asked for. A file's format follows from its
content, never from its name (`formats`).

`decoding` takes a picture through all of these, beginning with `sources`. Pillow reads every file's header and decodes
most formats. Plain JPEGs are handed to simplejpeg (`jpeg`). HEIC is read by pillow-heif, where that is installed: the
primary image, as the file itself turns it. A file that would take more memory or time than a picture can need is
refused first (`limits`).

Frames of videos are decoded by PyAV, where that is installed (`video`), those of animations by Pillow (`animation`);
`frames` opens either.

Any fault of a file becomes an `ImageError` that doesn't name the file (`pillow_errors`): the caller knows its path.
"""
