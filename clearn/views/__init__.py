"""Weak and strong views of images, for methods that ask a net to see the same in both.

Everything random is drawn on the CPU; the images stay on their device, and nothing waits for it.
"""

from clearn.views.views import Policy, Views

__all__ = ["Policy", "Views"]
