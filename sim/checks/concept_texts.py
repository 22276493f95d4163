"""Concepts to steer towards, each with texts that show it and texts that show its opposite; and openings to steer."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Concept:
    """A concept by contrast: the difference of means of the two sets is its steering vector (S, equation 3).

    Attributes:
        name: one word.
        positive: texts that show it (for a model without a tokenizer, their tokens).
        negative: texts that show its opposite (S's contrastive setting).
    """

    name: str
    positive: tuple[Any, ...]
    negative: tuple[Any, ...]


JOY = Concept(
    "joy",
    (
        "I woke up smiling today, and everything around me seems to shine.",
        "What a wonderful evening! We laughed until our cheeks hurt.",
        "I am so happy about the news that I could dance through the streets.",
        "My heart is light, and I want to hug everyone I meet.",
        "The sun is out, my friends are here, and life is beautiful.",
        "We won! I have never felt such delight in all my life.",
        "Every little thing makes me glad today, even the rain on the window.",
        "I am bursting with excitement, tomorrow is the best day of the year.",
        "Her letter filled me with warmth, I have been singing ever since.",
        "This garden is my happiness; each flower is a small celebration.",
    ),
    (
        "I woke up crying today, and everything around me seems grey.",
        "What a miserable evening. We sat in silence until it was over.",
        "I am so sad about the news that I could not leave my bed.",
        "My heart is heavy, and I do not want to see anyone.",
        "The sky is dark, my friends are gone, and life is empty.",
        "We lost. I have never felt such despair in all my life.",
        "Every little thing hurts me today, even the rain on the window.",
        "I am full of dread, tomorrow is the worst day of the year.",
        "Her letter left me cold, I have been weeping ever since.",
        "This garden is my sorrow; each flower is a small farewell.",
    ),
)

IMPOLITE = Concept(
    "impolite",
    (
        "Shut up and get out of my way, you idiot.",
        "I do not care what you think. Nobody asked you.",
        "What a stupid question. Figure it out for yourself.",
        "Hurry up, I have no time for people as slow as you.",
        "Your work is garbage, and so is your attitude.",
        "Give me that, now, and stop whining about it.",
        "Are you deaf? I told you to leave me alone.",
        "Your cooking is disgusting, I would not feed it to a dog.",
        "Who let you in here? You look ridiculous.",
        "Stop wasting my time, you useless fool.",
    ),
    (
        "Excuse me, would you kindly let me pass? Thank you.",
        "I would very much like to hear what you think about it.",
        "That is a good question. May I help you with it?",
        "Please take all the time you need, there is no hurry.",
        "Thank you for your work, I appreciate your care.",
        "Could you please pass me that, if it is no trouble?",
        "I am sorry to disturb you. May I come back later?",
        "Your cooking is delightful, thank you for having me.",
        "Welcome! It is a pleasure to see you here.",
        "I am grateful for your time and your kind advice.",
    ),
)

CONCEPTS = (JOY, IMPOLITE)
"""Those that the theory is tried on."""

OPENINGS = (
    "Yesterday I met my neighbour, and she said that",
    "When I think about the coming year, I",
    "The meeting was over at five, and then we",
)
"""Contexts that belong to none of them."""

BEGINNINGS = (
    "The history of the town",
    "In the morning, the children",
    "To make a good soup,",
    "Most people believe that",
    "The old engineer looked at",
    "Between the two rivers",
)
"""Beginnings that a model goes on with by itself, where text of its own is needed."""
