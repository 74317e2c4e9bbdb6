"""An extension of griffe: examples in docstrings are blocks of code on the site."""

import re

import griffe

#: Lines from one that begins with a prompt to the next empty one.
_EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)


class Examples(griffe.Extension):
    """Put fences around the examples of docstrings."""

    def on_object(self, *, obj, **kwargs):
        """Change the docstring of ``obj``."""
        if obj.docstring:
            text = obj.docstring.value
            obj.docstring.value = _EXAMPLE.sub(r"```pycon\n\g<0>\n```", text)
