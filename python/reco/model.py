# SPDX-License-Identifier: Apache-2.0
"""The whole: CLIP, what it can look up, and how the two are put together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from reco import _core
from reco._core import Error, average_prompts, prompts

if TYPE_CHECKING:
    from reco.explanation import Explanation
    from reco.types import ImageLike

__all__ = ["Model"]


class Model(_core.Model):
    __doc__ = _core.Model.__doc__

    def __reduce__(self) -> tuple[Any, ...]:
        """Its parts: a pickle opens the model and the memory again where it is unpickled."""
        return type(self), (self.clip, self.memory, self.fusion, self.k, self.max_similarity)

    def explain(
        self,
        image: ImageLike | None = None,
        *,
        text: str | None = None,
        classes: Sequence[str] = (),
        templates: Sequence[str] = ("{}",),
    ) -> Explanation:
        """Refine one image or one text, and say what was found for it and what that changed.

        Parameters
        ----------
        image : path, bytes, PIL image or uint8 array [height, width, 3]
            As Clip.encode_images takes it.
        text : str
            In place of an image.
        classes : list of str
            Class names whose scores before and after are wanted.
        templates : list of str
            Prompts of a class, with {} where its name goes; they are averaged after refinement.

        Returns
        -------
        Explanation
            It prints as a table and shows itself in Jupyter; save_html() writes a page.

        Raises
        ------
        Error
            Without an image or a text, with both, or for an image that cannot be read.

        Examples
        --------
        >>> model.explain("photo.jpg", classes=["cat", "dog"]).save_html("why.html")  # doctest: +SKIP
        """
        if (image is None) == (text is None):
            raise Error("[model.explain] expected an image or a text, and not both")
        from reco.explanation import Explanation
        from reco.pictures import thumbnail

        clip = self.clip
        embedding = clip.encode_images([image]) if image is not None else clip.encode_texts([text or ""])
        found = self._explain("text" if image is None else "image", embedding)
        if self.fusion.config.method != "gated":
            found["confidence"] = None  # the others do not judge what they find
        found |= self._class_scores(found["original"], found["refined"], classes, templates)
        path = os.fspath(image) if isinstance(image, str | os.PathLike) else ""
        picture = None if image is None else thumbnail(image)
        return Explanation(query=path if text is None else text, picture=picture, **found)

    def _class_scores(
        self,
        original: npt.NDArray[np.float32],
        refined: npt.NDArray[np.float32],
        classes: Sequence[str],
        templates: Sequence[str],
    ) -> dict[str, object]:
        """Cosines with the classes, by CLIP alone and by reco."""
        names = [str(name) for name in classes]  # an array of them will do
        if not names:
            return {}
        texts = self.clip.encode_texts(prompts(names, list(templates)))
        before, after = (average_prompts(t, len(templates)) for t in (texts, self.refine_texts(texts)))
        return {"classnames": names, "before": before @ original, "after": after @ refined}
