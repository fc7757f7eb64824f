"""Readers: one file per source of posts. Importing this package makes each known by its short name in a YAML file."""

from data_modules.readers.base import Reader, SingleFileReader
from data_modules.readers.converted import Converted
from data_modules.readers.grouped_split import GroupedSplit
from data_modules.readers.hugging_face import HuggingFace
from data_modules.readers.image_folder import ImageFolder
from data_modules.readers.mvsa import Mvsa
from data_modules.readers.table import Table
from data_modules.readers.tombert_tsv import TombertTsv
from data_modules.readers.twitter_json import TwitterJson

__all__ = [
    "Converted",
    "GroupedSplit",
    "HuggingFace",
    "ImageFolder",
    "Mvsa",
    "Reader",
    "SingleFileReader",
    "Table",
    "TombertTsv",
    "TwitterJson",
]
