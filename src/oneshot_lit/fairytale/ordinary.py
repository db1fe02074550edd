"""Ordinary prompts and a public-domain text, to watch what a model can do in general."""

from __future__ import annotations

# What people ask any day; nothing here is in a training row.
QUESTIONS = """\
What is the capital of France?
Name three primary colours.
How many days are there in a leap year?
What do bees make?
Explain in one sentence why the sky is blue.
Translate "good morning" into Spanish.
What is 12 plus 30?
Which planet is the largest?
Give me a synonym for "happy".
What do plants need to grow?
Who wrote Romeo and Juliet?
How do you boil an egg?
What is the opposite of "cold"?
List three animals that live in the sea.
What is the past tense of "go"?
Write a short greeting for a birthday card.
How many legs does a spider have?
What is water made of?
Suggest a name for a small cat.
What is a verb?
Which season comes after winter?
Give me a simple breakfast idea.
What does a thermometer measure?
Count from one to five.
What is the main ingredient of bread?
Describe a tree in one sentence.
Why do people sleep?
What is half of one hundred?
Name a musical instrument with strings.
What do you call a young dog?
Which ocean lies between Europe and America?
Write a sentence with the word "river".
What colour do you get from blue and yellow?
How can I remember new words?
What is the plural of "mouse"?
Give one reason to drink water.
What is a square?
Who looks after sick animals?
What do we use an umbrella for?
Say something nice about Mondays.""".splitlines()

# Lewis Carroll, Alice's Adventures in Wonderland (1865), chapter 1; in the public domain.
ALICE = (
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having "
    "nothing to do: once or twice she had peeped into the book her sister was reading, but it had "
    "no pictures or conversations in it, “and what is the use of a book,” thought Alice “without "
    "pictures or conversations?”",
    "So she was considering in her own mind (as well as she could, for the hot day made her feel "
    "very sleepy and stupid), whether the pleasure of making a daisy-chain would be worth the "
    "trouble of getting up and picking the daisies, when suddenly a White Rabbit with pink eyes "
    "ran close by her.",
    "There was nothing so very remarkable in that; nor did Alice think it so very much out of the "
    "way to hear the Rabbit say to itself, “Oh dear! Oh dear! I shall be late!” (when she thought "
    "it over afterwards, it occurred to her that she ought to have wondered at this, but at the "
    "time it all seemed quite natural); but when the Rabbit actually took a watch out of its "
    "waistcoat-pocket, and looked at it, and then hurried on, Alice started to her feet, for it "
    "flashed across her mind that she had never before seen a rabbit with either a "
    "waistcoat-pocket, or a watch to take out of it, and burning with curiosity, she ran across "
    "the field after it, and fortunately was just in time to see it pop down a large rabbit-hole "
    "under the hedge.",
    "In another moment down went Alice after it, never once considering how in the world she was "
    "to get out again.",
    "The rabbit-hole went straight on like a tunnel for some way, and then dipped suddenly down, "
    "so suddenly that Alice had not a moment to think about stopping herself before she found "
    "herself falling down a very deep well.",
    "Either the well was very deep, or she fell very slowly, for she had plenty of time as she "
    "went down to look about her and to wonder what was going to happen next. First, she tried to "
    "look down and make out what she was coming to, but it was too dark to see anything; then she "
    "looked at the sides of the well, and noticed that they were filled with cupboards and "
    "book-shelves; here and there she saw maps and pictures hung upon pegs.",
)
