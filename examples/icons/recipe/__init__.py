# SPDX-License-Identifier: Apache-2.0
"""The tiny CLIP's recipe, in parts; train_clip.py runs it."""
