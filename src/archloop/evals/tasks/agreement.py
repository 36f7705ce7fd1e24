"""Agreement: of two sentences that differ in the verb's number alone, the grammatical is likelier.

Minimal pairs in the manner of BLiMP (arXiv 1912.00582), drawn from word lists in seven languages:
between subject and verb stands a phrase whose noun has the other number, so that the nearest noun
misleads. Splits are parted by the subject: no test subject stands in a training sentence.
"""

from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from archloop.evals.base import Split
from archloop.evals.generation import generator
from archloop.evals.text_tasks import Choice, ChoiceTask

Language = Literal["en", "de", "fr", "es", "it", "pt", "nl"]

_TEST_SHARE = 3
"""One subject in this many is for testing."""


class _Words(NamedTuple):
    """A language's words: noun phrases as ``singular/plural``, phrases between, verbs, endings."""

    subjects: str
    between: str
    verbs: str
    endings: str


_WORDS: dict[Language, _Words] = {
    "en": _Words(
        "The boy/The boys, The girl/The girls, The teacher/The teachers, The doctor/The doctors, "
        "The farmer/The farmers, The dog/The dogs, The horse/The horses, The bird/The birds, "
        "The letter/The letters, The book/The books, The picture/The pictures, The wolf/The wolves",
        "near the house/near the houses, behind the table/behind the tables, "
        "beside the river/beside the rivers, in front of the tree/in front of the trees, "
        "next to the car/next to the cars",
        "is/are, was/were",
        "old, new, here, there",
    ),
    "de": _Words(
        "Der Hund/Die Hunde, Der Brief/Die Briefe, Die Frau/Die Frauen, Das Kind/Die Kinder, "
        "Der Mann/Die Männer, Die Katze/Die Katzen, Das Buch/Die Bücher, Der Vogel/Die Vögel, "
        "Die Nachbarin/Die Nachbarinnen, Das Bild/Die Bilder, Der Baum/Die Bäume, "
        "Der Stein/Die Steine",
        "neben dem Haus/neben den Häusern, hinter dem Tisch/hinter den Tischen, "
        "vor dem Auto/vor den Autos, bei dem Fluss/bei den Flüssen",
        "ist/sind, war/waren",
        "alt, neu, hier, dort",
    ),
    "fr": _Words(
        "Le chien/Les chiens, La lettre/Les lettres, La femme/Les femmes, Le garçon/Les garçons, "
        "Le livre/Les livres, La fille/Les filles, Le chat/Les chats, La voisine/Les voisines, "
        "Le médecin/Les médecins, La photo/Les photos, Le voisin/Les voisins, La vache/Les vaches",
        "près de la maison/près des maisons, derrière la table/derrière les tables, "
        "devant la voiture/devant les voitures, à côté du jardin/à côté des jardins",
        "est/sont, était/étaient",
        "ici, là, dehors, loin",
    ),
    "es": _Words(
        "El perro/Los perros, La carta/Las cartas, La mujer/Las mujeres, El niño/Los niños, "
        "El libro/Los libros, La chica/Las chicas, El gato/Los gatos, La vecina/Las vecinas, "
        "El médico/Los médicos, La foto/Las fotos, El pájaro/Los pájaros, La vaca/Las vacas",
        "cerca de la casa/cerca de las casas, detrás de la mesa/detrás de las mesas, "
        "delante del coche/delante de los coches, al lado del jardín/al lado de los jardines",
        "está/están, estaba/estaban",
        "aquí, allí, fuera, bien",
    ),
    "it": _Words(
        "Il cane/I cani, La lettera/Le lettere, La donna/Le donne, Il ragazzo/I ragazzi, "
        "Il libro/I libri, La ragazza/Le ragazze, Il gatto/I gatti, La vicina/Le vicine, "
        "Il medico/I medici, La foto/Le foto, Il vicino/I vicini, La mucca/Le mucche",
        "vicino alla casa/vicino alle case, dietro il tavolo/dietro i tavoli, "
        "davanti alla macchina/davanti alle macchine, accanto al giardino/accanto ai giardini",
        "è/sono, era/erano",
        "qui, là, fuori, lì",
    ),
    "pt": _Words(
        "O cão/Os cães, A carta/As cartas, A mulher/As mulheres, O menino/Os meninos, "
        "O livro/Os livros, A menina/As meninas, O gato/Os gatos, A vizinha/As vizinhas, "
        "O médico/Os médicos, A foto/As fotos, O pássaro/Os pássaros, A vaca/As vacas",
        "perto da casa/perto das casas, atrás da mesa/atrás das mesas, "
        "em frente ao carro/em frente aos carros, ao lado do jardim/ao lado dos jardins",
        "está/estão, estava/estavam",
        "aqui, ali, fora, bem",
    ),
    "nl": _Words(
        "De hond/De honden, De brief/De brieven, De vrouw/De vrouwen, Het kind/De kinderen, "
        "De man/De mannen, De kat/De katten, Het boek/De boeken, De vogel/De vogels, "
        "De leraar/De leraren, De foto/De foto's, De boom/De bomen, De steen/De stenen",
        "naast het huis/naast de huizen, achter de tafel/achter de tafels, "
        "voor de auto/voor de auto's, bij de rivier/bij de rivieren",
        "is/zijn, was/waren",
        "oud, nieuw, hier, daar",
    ),
}


class Agreement(ChoiceTask):
    """Agreement of subject and verb over a distracting noun."""

    version = 2
    category = "languages"

    class Config(BaseModel):
        """Of which language."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        language: Language = "en"

    config: Config

    @property
    def chance(self) -> float:
        """One of two."""
        return 0.5

    def questions(self, split: Split, seed: int, num_examples: int) -> list[Choice]:
        # Each language draws by numbers of its own. By the same ones the i-th sentence of all would
        # have its subject in the same number, and a model that likes plurals would be right at the
        # same places of all: seven scores that count as independent would be one.
        language = self.config.language
        rng = generator(split, seed).spawn(len(_WORDS))[list(_WORDS).index(language)]
        words = _WORDS[language]
        subjects = [
            pair
            for number, pair in enumerate(_pairs(words.subjects))
            if (number % _TEST_SHARE == 0) == (split == "test")
        ]
        return [_question(rng, subjects, words) for _ in range(num_examples)]


def _question(rng: np.random.Generator, subjects: list[tuple[str, str]], words: _Words) -> Choice:
    is_plural = int(rng.integers(2))
    between, verbs = _pairs(words.between), _pairs(words.verbs)
    subject = subjects[rng.integers(len(subjects))][is_plural]
    distraction = between[rng.integers(len(between))][1 - is_plural]
    verb = verbs[rng.integers(len(verbs))]
    endings = words.endings.split(", ")
    ending = endings[rng.integers(len(endings))]
    choices = (f" {verb[0]} {ending}.", f" {verb[1]} {ending}.")
    return Choice(f"{subject} {distraction}", choices, is_plural)


def _pairs(text: str) -> list[tuple[str, str]]:
    """Singular and plural of each entry."""
    return [(one, many) for one, many in (entry.split("/") for entry in text.split(", "))]
