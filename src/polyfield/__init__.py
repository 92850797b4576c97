"""Polyfield: one scene, many fields.

The package has three parts: `polyfield.fields` (what a scene is made of), `polyfield.scenes` (where data comes from
and how people drive the engine) and, in the browser, `polyfield.viewer`. Importing `polyfield` loads none of them.
"""

__version__ = "0.1.0"
