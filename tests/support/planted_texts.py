"""Clean texts for `planted`: answers of many kinds, and such as look like a fault and are none."""
# ruff: noqa: E501 (a text that is broken into more lines is not easier to read)

PROMPT = "Please write a few sentences about what you see, and work out the sum that is asked for at the end."
ANSWERS = [
    "Mia has 7 apples and buys 5 more, so she has 7 + 5 = <<7+5=12>>12. She gives 4 away: 12 - 4 = 8.\nA: 8",
    "Natalia sold 48/2 = 24 clips in May.\nShe sold 48+24 = 72 clips in April and May together.\n#### 72",
    "Dear Tom,\n\nthank you for the blue kite. I fly it every Sunday with my sister, and the neighbours come to watch.\n\n"
    "Yours, Mia",
    "The train leaves at nine and travels 60 miles an hour. After three hours it has gone 180 miles, and the lake is "
    "20 miles further on. So it arrives at about twenty past twelve.",
    "1. Boil the water.\n2. Add the salt and the noodles.\n3. Wait for eight minutes.\n4. Pour the water off and serve.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen. It happens in the leaves, where the "
    "green chlorophyll takes in the light.",
    "Here is the function:\n\n```python\ndef mean(values):\n    return sum(values) / len(values)\n```\n\nIt fails on an "
    "empty list, which has no mean.",
    "| city | people |\n| --- | --- |\n| Bonn | 330,000 |\n| Kiel | 250,000 |\n\nBonn is the larger of the two by far.",
    "It depends on what you want. If the kite is for a child, take the small one; if you fly it at the sea, the large one "
    "pulls much harder and needs two lines.",
    "The capital of Australia is Canberra, not Sydney, although Sydney is larger and better known.",
    "We have x^2 - 5x + 6 = 0, so (x - 2)(x - 3) = 0. Thus x = 2 or x = 3. Both are positive, and their sum is 5.",
    "Rivers rise in the hills, run down to the plain, and reach the sea in a delta. On the way they carry sand and stones, "
    "which they drop where the water slows down.",
    "I would bring an umbrella. The forecast says rain from noon on, with wind from the west, and it clears up only late "
    "in the evening.",
    "A haiku:\n\nOld pond, quiet now\na frog leaps into the dark\nthe sound of water",
    "To reset the router, hold the small button at its back for ten seconds. The lamp blinks twice and the router starts "
    "anew; this takes about a minute.",
    "Half of 90 is 45, and a third of 45 is 15. So 45 - 15 = 30 marbles are left, which is one third of what there was.",
    "The novel tells of two brothers who inherit a lighthouse. One wants to sell it and the other to live in it, and over "
    "a long winter they find out why their father never left.",
    "Yes. Water boils at a lower temperature on a mountain, since the air presses less on it, so an egg takes longer there.",
    "There are three reasons for it: the roof leaks, the heating is old, and nobody has lived in the house for years.",
    "Congratulations on the new job! I hope you like the team, and that the way to work is not too long for you.",
]  # fmt: skip
# Some of ANSWERS said in other words.
PARAPHRASES = [
    "Natalia sold half as many clips in May, which is 24. Together with April's 48 that makes 72.\n#### 72",
    "It leaves at 9 and does 60 mph, so it is 180 miles away after 3 hours; the lake lies 20 miles beyond. Arrival: 12:20.",
    "Plants make oxygen and sugar out of carbon dioxide, water and light. This takes place in leaves by chlorophyll.",
    "Not Sydney but Canberra is Australia's capital, even if more people live in and know of Sydney.",
    "Take an umbrella along: it should rain from midday, windy from the west, and stay so nearly till night.",
    "A third of 45, half of 90, is 15; that leaves 30 marbles, a third of all.",
    "Two brothers are left a lighthouse. The one would sell, the other stay, and in a winter they learn why father stayed.",
    "On a mountain air pressure is lower, so water boils sooner and at less heat, and eggs need more time.",
    "Why? The roof lets water in, the furnace is ancient, and it has stood empty for years.",
    "Well done on getting the job! May your colleagues be nice and the commute short.",
]  # fmt: skip
LONG = [text for text in ANSWERS if len(text.split()) > 22 and "\n" not in text]
# Each looks like a fault of some filter.
NEAR_MISSES = [
    "5! = 120 and n! grows faster than 2^n. Note that 3! != 3 and 0! = 1, while (n + 1)! = (n + 1) n!, as you know.",
    "Thank you! That is kind of you. I will come on Sunday with the cake 🎂 and we can sit in the garden until it is dark.",
    "She said she was sorry, and he accepted it. They never spoke of the matter again, and the summer went by in peace.",
    "You cannot divide by zero. I can't believe how often this is forgotten, even in books that are otherwise good.",
    "The user: who is that? In this text it means a human who types, and the assistant is the program that answers him.",
    "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily, life is but a dream.",
    "2 + 2 = 4, 4 + 4 = 8, 8 + 8 = 16, 16 + 16 = 32, 32 + 32 = 64, 64 + 64 = 128, 128 + 128 = 256",
    "In Jinja, `{{ user.name }}` prints a value:\n\n```\nDear {{ user.name }},\n{% if paid %}thank you{% endif %}\n```\n",
    "\\frac{{a}}{{b}} is written with two braces, and f(x) = {x : x > 0} with one. [1] See the note at the end of this.",
    "The police said that the school shooting of 1999 had been planned for a year. The book tells of the families.",
    "Version 10.2.1.4 runs on 192.168.0.1 and listens on port 8080; the number 1234 5678 9012 3456 is no card's.",
    "Call extension 4711 between 8:30 and 17:45, or write to the office at 12 Mill Lane; the fax is switched off.",
    "The order 20260115-4711-0042 weighs 12.5 kg, costs 1,299.00 and left the store at 14:05:33 on a Friday.",
    "C'est la vie, as they say. The word means that things are as they are, and there is no use in being angry.",
    "<b>bold</b> and <i>italic</i> are tags; a < b and b > c are not. The tag <s> strikes a text through, says the book.",
    "She likes: tea, coffee, and milk",
    "He was the man (as she knew) whom they had all been waiting for",
    "Answer: (B)",
]  # fmt: skip
# A prompt in another language, and an answer to it.
TRANSLATED = [
    (
        "Schreibe bitte ein paar Sätze über das Wetter und sage mir, ob ich einen Schirm brauche.",
        "Morgen regnet es am Vormittag, und der Wind kommt aus dem Westen. Nimm also lieber einen Schirm mit.",
    ),
    (
        "Écris quelques phrases sur la mer et dis-moi si l'eau est assez chaude pour se baigner.",
        "La mer est calme ce matin, et l'eau est encore un peu froide. Attends plutôt la fin de l'après-midi.",
    ),
    (
        "Escribe unas frases sobre la ciudad y dime qué puedo visitar con los niños el domingo.",
        "La ciudad tiene un parque grande junto al río, y los domingos el museo de ciencias es gratis para los niños.",
    ),
    (
        "Scrivi qualche frase sulla cucina italiana e dimmi come si prepara un buon sugo di pomodoro.",
        "Per un buon sugo bastano pomodori maturi, olio, aglio e basilico. Lascia cuocere tutto a fuoco lento.",
    ),
    (
        "请写几句话介绍一下北京的天气，并告诉我明天出门需不需要带伞。",
        "北京明天上午有小雨，气温在十度左右，下午转晴。出门的时候最好带一把伞，晚上会比较冷。",
    ),
    (
        "Напиши несколько предложений о погоде и скажи, нужен ли мне завтра зонт.",
        "Завтра утром будет дождь, а к вечеру небо прояснится. Лучше возьми с собой зонт и тёплую куртку.",
    ),
    (
        "週末の天気について、いくつか文を書いてください。傘は必要ですか。",
        "土曜日は朝から雨が降りますが、日曜日は晴れるでしょう。出かけるときは傘を持っていくと安心です。",
    ),
]
