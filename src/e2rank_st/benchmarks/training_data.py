"""A model's training sets → their licences, and how much of a task the model has seen.

The names of the training sets are in a model's ``training.json``. Titles, licences and public names are rows here. A
data set without a row is refused, since nobody could say its licence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2rank_st.storage import read_json
from e2rank_st.training.record import JSON_NAME, stages

__all__ = ["SEEN_BY_BASE", "TRAINING_SETS", "TrainingData", "TrainingSet", "by_name"]

MS_MARCO = "MS MARCO terms, non-commercial research"
DEV, DEV_TASK = "_dev", "-dev"  # behind the name of a data set: its dev split, in training and in tasks.py


@dataclass(frozen=True)
class TrainingSet:
    """A data set.

    Attributes:
        title: Its authors' name for it.
        licence: Terms of use of its texts and judgements.
        labels: Where its labels come from, apart from a teacher model.
        hub: Its authors' data set on the Hub, if there is one.
        mteb: Its name in MTEB's lists of training data.
        tasks: Evaluation tasks on it.
    """

    name: str
    title: str
    licence: str
    labels: str
    hub: str | None = None
    mteb: str = ""
    tasks: tuple[str, ...] = ()


TRAINING_SETS = (
    TrainingSet(
        "squad",
        "SQuAD 1.1",
        "CC BY-SA 4.0",
        "the paragraph a question was asked about",
        "rajpurkar/squad",
        "SQuAD",
        ("squad-dev",),
    ),
    TrainingSet("medquad", "MedQuAD", "CC BY 4.0", "the answer to a question", mteb="MedQuAD"),
    TrainingSet(
        "wikiqa",
        "WikiQA",
        "Microsoft Research data licence",
        "sentences judged right or wrong",
        "microsoft/wiki_qa",
        "WikiQA",
    ),
    TrainingSet(
        "mediqa",
        "MEDIQA 2019, task 3",
        "research use",
        "answers graded by people",
        mteb="MEDIQA2019",
        tasks=("mediqa-dev",),
    ),
    *(
        TrainingSet(
            f"dl{year}",
            f"TREC Deep Learning 20{year}, passages",
            MS_MARCO,
            "the order of stronger systems" if year == 22 else "passages graded by NIST",
            mteb="MSMARCO" if year < 21 else "MSMARCOv2",
            tasks=(f"dl{year}",),
        )
        for year in range(19, 24)
    ),
    TrainingSet("dl23dev", "TREC Deep Learning 2023, 17 more queries", MS_MARCO, "graded by NIST", mteb="MSMARCOv2"),
    TrainingSet(
        "msmarco_dev",
        "MS MARCO passages, dev",
        MS_MARCO,
        "passages marked by people",
        mteb="MSMARCO",
        tasks=("MSMARCO", "MSMARCOHardNegatives", "NanoMSMARCORetrieval"),
    ),
    TrainingSet(
        "msmarco_graded", "MS MARCO passages, dev, graded anew", MS_MARCO, "passages graded by people", mteb="MSMARCO"
    ),
    TrainingSet("bioasq", "BioASQ", "CC BY 2.5", "snippets that experts answered from", mteb="BioASQ"),
    TrainingSet("evidence", "Evidence Inference", "MIT", "the trial of a hypothesis", mteb="EvidenceInference"),
    TrainingSet(
        "citations", "Citation Integrity", "MIT", "the passage that a sentence cites", mteb="CitationIntegrity"
    ),
    TrainingSet("pubmedqa", "PubMedQA", "MIT", "the abstract of a title or a conclusion", mteb="PubMedQA"),
    TrainingSet("scitldr", "SciTLDR", "Apache-2.0", "the abstract of a summary", mteb="SciTLDR"),
    TrainingSet(
        "nq",
        "Natural Questions",
        "CC BY-SA 3.0",
        "the paragraph of an answer",
        mteb="NQ",
        tasks=("NQ", "NQHardNegatives", "NanoNQRetrieval"),
    ),
    TrainingSet("boolq", "BoolQ", "CC BY-SA 3.0", "the paragraph of an answer", mteb="BoolQ"),
    TrainingSet("medforum", "a forum of patients", "MIT", "answers of doctors", mteb="MedicalForum"),
    TrainingSet("covidfaq", "COVID FAQs", "Apache-2.0", "the answer to a question", mteb="CovidFAQ"),
    TrainingSet("stackexchange", "Stack Exchange", "CC BY-SA", "answers, graded by votes", mteb="StackExchange"),
    TrainingSet(
        "healthver",
        "HealthVer",
        "research use",
        "abstracts judged by people",
        mteb="HealthVer",
        tasks=("healthver-dev",),
    ),
    TrainingSet(
        "nfcorpus",
        "NFCorpus",
        "academic use",
        "links between pages",
        "mteb/nfcorpus",
        "NFCorpus",
        ("NFCorpus", "nfc", "nfcorpus-dev", "NanoNFCorpusRetrieval"),
    ),
    TrainingSet(
        "scifact",
        "SciFact",
        "CC BY 4.0, ODC-By 1.0",
        "claims checked by people",
        "mteb/scifact",
        "SciFact",
        ("SciFact", "scifact", "NanoSciFactRetrieval"),
    ),
)
# Of all-MiniLM-L6-v2, by its card: training sets of its authors that are tasks, too.
SEEN_BY_BASE = frozenset(
    {"MSMARCO", "MSMARCOHardNegatives", "NanoMSMARCORetrieval", "NQ", "NQHardNegatives", "NanoNQRetrieval"}
)


@dataclass(frozen=True)
class TrainingData:
    """The data that a model was trained on and chosen by.

    Attributes:
        train: A record for each training set, by its name, as ``training.json`` has it. Where several stages have one,
            it is the record with the most documents.
        dev: The same for the data that settings were chosen by.
    """

    train: Mapping[str, Mapping[str, Any]]
    dev: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> TrainingData:
        """Read a model's ``training.json``, earlier stages included.

        Raises:
            OSError: There is none.
            ValueError: It names a training set that is not in :data:`TRAINING_SETS`.
        """
        runs = stages(read_json(folder / JSON_NAME))
        train, dev = ([record for run in runs for record in run["data"][part]] for part in ("train", "dev"))
        found = cls(by_name(sorted(train, key=lambda record: record["documents"])), by_name(dev))
        unknown = found.train.keys() - {row.name for row in TRAINING_SETS}
        if unknown:
            raise ValueError(
                f"{JSON_NAME} names the training data {', '.join(sorted(unknown))}, whose licence nobody wrote down; "
                "add rows to TRAINING_SETS in e2rank_st/benchmarks/training_data.py."
            )
        return found

    @property
    def sets(self) -> list[TrainingSet]:
        """The rows of the training sets, in the order of the table."""
        return [row for row in TRAINING_SETS if row.name in self.train]

    def seen(self, task: str) -> str:
        """Say how much of a task, by its name for MTEB or in ``tasks.py``, the model has seen."""
        row = next((row for row in TRAINING_SETS if task in row.tasks), None)
        unseen = "no: the base was trained on it" if task in SEEN_BY_BASE else "yes"
        if row is None:
            return unseen
        is_dev = task == row.name + DEV_TASK
        if row.name in self.train:
            return "no: trained on the train split, chosen by this one: a dev score" if is_dev else "no: trained on it"
        if row.name in self.dev or (is_dev and row.name + DEV in self.dev):
            return "yes, but settings were chosen by these very queries: a dev score"
        if row.name + DEV in self.dev:
            return "yes; settings were chosen by its dev queries, not by these"
        return unseen


def by_name(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Records under the names that training gave them, of one name the last."""
    return {record.get("name") or Path(record["path"]).name.split(".")[0]: record for record in records}
