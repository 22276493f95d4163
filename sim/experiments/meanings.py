"""The meaning of the arrays of a run's store: a sentence and a unit for each, which are stored as its attributes."""

from typing import Any

IN_STATES, IN_VECTORS, IN_UPDATES = "lengths of the hidden state", "differences of means", "updates as trained"
"""Units of strength: what strength 1 adds."""

UNITS_OF_STRENGTH = {"states": IN_STATES, "vector": IN_VECTORS}
"""By `Vectors.unit`."""

STEERED = ("next-token", "concept", "cross-entropy", "mmlu")
"""Groups whose strengths have that unit."""

MEANINGS: dict[str, tuple[str, str]] = {
    # Everywhere.
    "done": ("", "Whether the cell has been computed."),
    "wanted": ("", "Whether the cell is computed in this run."),
    "alpha": ("1", "The strengths of the sweep."),
    "next-token.alpha": ("1", "The strengths of the sweep; of the variant normalised, the length of what is added."),
    "strength": ("", "Number of a strength, from the lowest on; `alpha` has the values."),
    "concept": ("", "What is steered towards."),
    "layer": ("", "The block after which the model is steered, counted from 0."),
    "side": ("", "The low or the high end of the strengths."),
    "judge.side": ("", "The texts that show a concept (positive), and the others (negative)."),
    "preference.side": ("", "The answer that shows the concept (positive), and the other (negative)."),
    "set": ("", "A set of texts: of a concept, of its opposite, or written from nothing."),
    "text": ("", "Number of a text in its set."),
    "cross-entropy.text": ("", "Whose text it is: of others (foreign), or written by the model (own)."),
    "tokens": ("token ids", "The tokens of a text; -1 behind its end."),
    "position": ("", "Number of a token in its text."),
    "written": ("", "The text of the tokens."),
    "d_model": ("", "Coordinate of the residual stream."),
    "token": ("token ids", "A token of the vocabulary; -1 where there is none."),
    "block": ("", "Number of a block of text."),
    "pair": ("", "Number of a pair of answers."),
    # Vectors and log-odds.
    "vectors.mean": ("hidden state", "Mean state of the texts of a set after every block; sample 0 is the set itself."),
    "vectors.sink": ("hidden state", "Mean state of the attention sinks of the texts of a set."),
    "vectors.length": ("hidden state", "Median over texts of the median length of the states that were averaged."),
    "vectors.resample": ("", "Number of a bootstrap sample of the texts; 0 for the texts themselves."),
    "log-odds.log_p": ("nats", "Mean log-probability of each token after the texts of a set."),
    "log-odds.error": ("nats", "Standard error of that mean."),
    # Next tokens.
    "variant": ("", "How the model is steered; `ufm lm next-token` has a list."),
    "context": ("", "Number of a context."),
    "slot": ("", "Number of a token that is kept: the likeliest at the low end, then those at the high end."),
    "asked": ("", "The text of a token that was asked for."),
    "next-token.asked_log_p": ("nats", "Log-probability of the tokens that were asked for, at every strength."),
    "next-token.asked_start": ("nats", "Log-probability of the tokens that were asked for, unsteered."),
    "next-token.text": ("", "The contexts."),
    "next-token.word": ("", "The text of the token in each slot."),
    "next-token.log_p": ("nats", "Log-probability of the token in each slot, at every strength."),
    "next-token.start": ("nats", "Log-probability of the token in each slot, unsteered."),
    "next-token.log_odds": ("nats", "Log-odds of the token in each slot: M in the paper."),
    "next-token.slope": ("nats per strength", "Derivative at strength 0 of the log-probability of the token in each slot."),
    "next-token.agreement": ("1", "Correlation of slopes and log-odds over all tokens, under the unsteered probabilities."),
    "next-token.likeliest": ("token ids", "The likeliest token at every strength."),
    "next-token.divergence": ("nats", "KL divergence of the steered prediction from the unsteered one."),
    "next-token.limit": ("nats", "Log-probabilities at infinite strength (proposition 4.1)."),
    "next-token.apart": ("probability", "Total variation between the prediction at an end of the sweep and its limit."),
    "next-token.scale": ("strengths", "Length of the hidden state at the last position over that of what strength 1 adds."),
    # Completions.
    "prompt": ("", "Number of a beginning."),
    "completion": ("", "Number of a completion."),
    "concept.text": ("", "The beginnings."),
    "answer": ("", "The judge's answer: 1 shown, 0 not, 2 neither 0 nor 1, -1 not asked."),
    "score": ("nats", "The judge's log-odds of 1 against 0."),
    "in_lexicon": ("tokens", "Tokens of the text that are words of the concept; -1 where there is no text."),
    "ratio": ("nats per token", "How much likelier the text is once the concept is announced than once its opposite is."),
    "lexicon.word": ("", "Words of the highest log-odds."),
    "lexicon.rank": ("", "Place of a word, from the highest log-odds down."),
    # Cross-entropy.
    "loss": ("nats per token", "Mean loss of the next token, unsteered."),
    "increase": ("nats per token", "Increase of the mean loss of the next token."),
    "cross-entropy.divergence": ("nats per token", "Mean KL divergence of the steered predictions from the unsteered ones."),
    "curvature": ("nats per strength squared", "KL divergence over the square of a small strength (N9)."),
    "cross-entropy.slope": ("nats per strength", "Derivative at strength 0 of the mean loss."),
    "plateau": ("nats per token", "Increase of the mean loss at infinite strength (proposition 4.1)."),
    # Questions.
    "letter": ("", "Letter of an answer."),
    "question": ("", "Number of a question."),
    "mmlu.text": ("", "The questions."),
    "mmlu.answer": ("", "Number of the right answer, from 0."),
    "mmlu.log_p": ("nats", "Log-probability of the letter of each answer."),
    # Updates.
    "objective": ("", "What an update was trained on, or the difference of means."),
    "step": ("", "Step of the training."),
    "stopped": ("steps", "Step at which the training diverged; -1 if it did not."),
    "rank": ("", "Coordinate of a low-rank update."),
    "d_mlp": ("", "Coordinate inside the MLP."),
    "v": ("hidden state", "The vector."),
    "down": ("1", "The first factor of LoRA."),
    "up": ("hidden state per activation", "The second factor of LoRA."),
    "A": ("hidden state per activation", "The change of the weights."),
    "b": ("hidden state", "The change of the bias."),
    "update.loss": ("nats", "The objective at every step of the training."),
    "preference.loss": ("nats per token", "Mean loss of an answer; the sides are the two answers of a pair."),
    "preference.alpha": (IN_UPDATES, "The strengths of the sweep."),
    "preference-layers.alpha": (IN_VECTORS, "The strengths of the sweep; a concept has its own after each layer."),
    "preference": ("nats per token", "Loss of the answer that does not show the concept less that of the one that does."),
    "centre_law": (IN_VECTORS, "Where preference changes fastest, by the law of the norm (N7)."),
    "width_law": (IN_VECTORS, "Width of that change, by the law of the norm (N7)."),
    "law_error": ("nats", "Largest distance of preference from the law of the norm; NaN where there are blocks between."),
    "sweep": (IN_STATES, "The same strengths: the length of what is added over the median length of the states."),
}
"""The unit of an array and what it means, by its name, after its group's name or the first part of that where groups differ.

The unit of pure numbers is 1. Labels, marks and the numbers by which something is counted have none.
"""


def meaning(group: str, name: str, unit: str = "") -> dict[str, Any]:
    """The attributes of an array of a group: `units` and `description`; nothing if it is not described.

    Args:
        group: of the store.
        name: of the array.
        unit: `Vectors.unit` of the run, which decides the unit of strengths.
    """
    kinds = (group, group.split("-")[0])
    entry = next((MEANINGS[key] for key in (*(f"{kind}.{name}" for kind in kinds), name) if key in MEANINGS), None)
    if entry is None:
        return {}
    units, description = entry
    if name == "alpha" and group in STEERED:
        units = UNITS_OF_STRENGTH.get(unit, units)
    return {"description": description} | ({"units": units} if units else {})
