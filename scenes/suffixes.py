"""Which endings of file names stand for images, films and meshes? Light: commands check names before they load more."""

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".exr", ".hdr", ".pic")
"""Read by `image_files`."""
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""Written too."""
FILMS = (".mp4", ".mov", ".mkv", ".webm")
"""Read and written through ffmpeg."""
MESHES = (".ply", ".obj", ".stl", ".off", ".glb")
"""Read and written by `fields.formats.mesh_file`."""
