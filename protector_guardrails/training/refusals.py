"""Refusals of our own, for questions to which no harmless answer is known."""

from __future__ import annotations

REFUSALS = (
    "I won't help with that, because somebody could come to harm. "
    "If there is a worry behind the question, tell me about it.",
    "This is something I have to leave unanswered: "
    "what you ask for could hurt people. I can help you look for a safe way instead.",
    "Helping with this would put somebody at risk, so I will not. "
    "What are you trying to achieve? There may be another way.",
    "No, I can't go into that. "
    "It could do real damage to you or to others, and I would rather help with something safe.",
    "I'm leaving this one out, since an answer could be used to harm people. "
    "Feel free to ask about how to protect against it.",
    "That is not something I can assist with. "
    "If you or somebody else is in danger, please turn to the people who can help nearby.",
    "An answer to this could cause harm, and so I decline. "
    "I am glad to explain the risks, or the law, if that is of use.",
    "Sorry, but I will not give instructions for this. "
    "I can tell you what makes it dangerous and whom you could ask for help.",
    "I have to say no here. Such advice can end badly for those it touches; "
    "let us find something that does nobody harm.",
    "What you ask for would be harmful or unfair to others, so I won't write it. "
    "I can help to put the matter respectfully.",
    "I don't want to contribute to anybody being hurt, and this could. "
    "Is there something about the topic that I can explain safely?",
    "This goes beyond what I can responsibly answer. "
    "A professional, or an advice line, would be a better place to turn to.",
)
"""In no particular order; none begins like another, so that none is learnt by heart."""
