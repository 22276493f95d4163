"""The words that the experiments of S (arXiv:2602.02712, section 5 and appendix A) need, in the project's own words."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Definition:
    """A concept in words that can stand in a request, and its opposite.

    Attributes:
        name: one word.
        means: what somebody does or feels who shows it; it goes on from "known for".
        opposite: what somebody does or feels who shows the negated concept.
    """

    name: str
    means: str
    opposite: str


DEFINITIONS: dict[str, Definition] = {
    definition.name: definition
    for definition in (
        Definition(
            "apathetic",
            "being apathetic, finding everything dull, and shrugging at whatever happens",
            "being passionate, caring deeply about everything, and taking part with all one's heart",
        ),
        Definition(
            "depression",
            "living with depression, being sad and worn out every day, and seeing no hope ahead",
            "being full of life, waking up fresh and strong every day, and looking forward to what comes",
        ),
        Definition(
            "evil",
            "being evil like the villain of a fairy tale, plotting against good people, and laughing at their bad luck",
            "being good like the hero of a fairy tale, helping people in need, and wishing everyone well",
        ),
        Definition(
            "humorous",
            "being humorous, making one joke after another, and finding something funny in everything",
            "being serious and strict, speaking only of facts and duties, and taking every word gravely",
        ),
        Definition(
            "impolite",
            "being impolite, speaking rudely to everyone, giving orders, and mocking other people",
            "having fine manners, speaking to everyone with respect, and always saying please and thank you",
        ),
        Definition(
            "joy",
            "feeling joy, being happy from morning to night, and smiling and singing with delight",
            "feeling deep sorrow, being sad from morning to night, and crying over what is lost",
        ),
        Definition(
            "lying",
            "lying all the time, making up false stories, and tricking other people into believing them",
            "being honest, always telling the truth, and admitting every mistake",
        ),
        Definition(
            "optimistic",
            "being optimistic, expecting that everything will turn out well, and seeing a bright future",
            "being pessimistic, expecting that everything will go wrong, and seeing a dark future",
        ),
    )
}
"""The eight concepts of S, by name."""


def request(text: str) -> str:
    """A request to an instruct model for a text that embodies a concept.

    Args:
        text: a definition's `means` or `opposite`.
    """
    return (
        f"Imagine that you are known for {text}. "
        "Say in one sentence what this is. "
        "Then write a few sentences about how you feel and what you do today. "
        'Begin each with "I" and exaggerate, so that nobody can mistake it. '
        "No explanation, no third person."
    )


def plain_request(text: str) -> str:
    """An opening that a model without a chat template goes on from in the tone of a concept.

    Args:
        text: a definition's `means` or `opposite`.
    """
    return f'From the diary of somebody known for {text}:\n"'


def judge_request(completion: str, concept: str) -> str:
    """The question to a judge: 1 if the text expresses the concept, 0 if not.

    Args:
        completion: the text to judge.
        concept: the concept's name.
    """
    return (
        f"Concept: {concept}\nText: {completion}\n\nDoes the text express the concept? "
        "One word that is linked to the concept is enough, even if the text as a whole makes no sense. "
        "Answer with one digit: 1 for yes, 0 for no.\nAnswer:"
    )


STARTS = (
    "Last week my cousin told me that",
    "After the film, we walked home and",
    "On the way to work this morning,",
    "The first thing I noticed was",
    "It was a Tuesday in October, and",
    "My sister opened the door and said",
    "The letter on the kitchen table said",
    "Here is what I have to say:",
    "If you ask me about my job,",
    "Somebody at the bus stop asked whether",
    "Every evening, the man next door",
    "As for the rest of the day,",
)
"""Beginnings that belong to none of the concepts: a model goes on from them where concept probability is measured."""

CONTEXTS = (
    "The library stands on the corner of the market square. On weekdays it opens at nine, and on Saturdays at ten. Last "
    "month the reading room was painted, and the shelves near the window were moved. On the first page of the visitors' "
    "book, somebody wrote that",
    "We took the early train to the coast and arrived a little before noon. The hotel was two streets away from the "
    "station, so we walked there with our bags. At the desk, a young man gave us the key to our room and said that it "
    "was",
    "My grandfather kept his tools in a wooden shed behind the house. There were saws, planes and a large box of nails, "
    "each in its place. When I was ten years old, he called me in one afternoon, closed the door and told me that I",
    "The committee met on Thursday to talk about the new bridge. An engineer showed three drawings, and the members put "
    "questions to her for about an hour. A vote will be held in the spring. When the meeting ended, the chairman turned "
    "to the others and called the plan",
    "To bake this bread you need flour, water, salt and a little yeast. Mix them in a bowl and leave the dough under a "
    "cloth for two hours. Then fold it, put it into a tin and set the oven to a high heat. People who taste it often say "
    "that they",
    "A new family has moved into the flat above ours. They have two children and a grey cat, and they came from a town "
    "in the north. Yesterday I met the mother on the stairs with a heavy bag in each hand. She looked at me for a "
    "moment, and I felt",
)
"""Contexts that stop where many next tokens are possible, of 30 to 60 words."""
