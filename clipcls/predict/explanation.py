"""Explain answers: how similar an image is to each prompt of its best two labels."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from clipcls.embed.session import Session
from clipcls.embed.texts import embed_texts
from clipcls.predict.ranking import Array, LabelFeatures, Scoring, rank, similarities
from clipcls.records import Explanation, PromptSimilarity


class Explainer:
    """Explains the answers of one run. A label's prompts are embedded when it is first among the best two.

    Args:
        prompts: those of each label, in the labels' order.
    """

    def __init__(
        self, labels: LabelFeatures, prompts: Sequence[tuple[str, ...]], scoring: Scoring, session: Session
    ) -> None:
        self._names = labels.names
        self._prompts = dict(zip(labels.names, prompts, strict=True))
        # ranks the best two labels, whatever the run lists or rejects
        self._best_two = replace(scoring, multi_label=False, top_k=2, threshold=None, min_margin=None)
        self._session = session
        self._features: dict[str, Array] = {}

    def explain(self, image_features: Array, cosines: Array, label_scores: Array) -> Explanation:
        """Explain the answer for one image.

        Args:
            image_features: (embed_dim,) float32, L2-normalised.
            cosines: (n_labels,) float32.
            label_scores: (n_labels,) float32.
        """
        best = rank("", cosines, label_scores, self._names, self._best_two).top
        return Explanation(
            margin=best[0].score - best[1].score if len(best) > 1 else None,
            prompts=tuple(
                PromptSimilarity(entry.label, prompt, float(cosine))
                for entry in best
                for prompt, cosine in zip(
                    self._prompts[entry.label],
                    similarities(image_features[None], self._prompt_features(entry.label))[0],
                    strict=True,
                )
            ),
        )

    def _prompt_features(self, label: str) -> Array:
        """Return the features of a label's prompts, (n_prompts, embed_dim) float32, L2-normalised."""
        if label not in self._features:
            texts = embed_texts([(prompt,) for prompt in self._prompts[label]], self._session)
            self._features[label] = np.stack([text.features for text in texts])
        return self._features[label]
