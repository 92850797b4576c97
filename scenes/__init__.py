"""Where data comes from and how people drive the engine: scenes, their files, training and the command line."""

from .images import Images as Images
from .scene import Scene as Scene
from .scene import load_scene as load_scene
