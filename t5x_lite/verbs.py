"""The verbs of the command, each with its program, flags and examples."""

from typing import NamedTuple

Flag = tuple[str, dict]  # what argparse's add_argument takes

GIN_FLAGS: tuple[Flag, ...] = (
    ("--gin_file", dict(action="append", default=[], metavar="FILE",
     help="a gin file, found by name in the current folder, --gin_search_paths or among the "
          "shipped ones; may be repeated, later ones win")),
    ("--gin_search_paths", dict(action="append", default=[], metavar="FOLDER[,FOLDER]",
     help="where to look for gin files after the current folder; may be repeated")),
    ("--gin_bindings", dict(action="append", default=[], metavar="NAME=VALUE",
     help="the same as --gin.NAME=VALUE")),
    ("--gin.NAME", dict(action="append", dest="gin_bindings", metavar="VALUE",
     help="set a MACRO or a scope/configurable.parameter; it overrides the gin files")),
    ("--trust_config", dict(action="store_true",
     help="let gin files from a URL or a run's folder, or that others include by their path, "
          "import any Python module")),
)  # fmt: skip
_PROCESS_FLAGS: tuple[Flag, ...] = (
    ("--coordinator_address", dict(metavar="HOST:PORT",
     help="of process 0, to join several processes where jax can't find the cluster by itself")),
    ("--process_count", dict(type=int, metavar="N", help="how many processes there are")),
    ("--process_index", dict(type=int, metavar="I", help="which of them this is, from 0")),
)  # fmt: skip
_DRY_RUN = ("--dry_run", dict(action="store_true",
    help="check the config, build everything, print what would run, and stop"))  # fmt: skip
_RESTART = ("--restart", dict(type=int, default=0, metavar="N",
    help="after a crash start again, N times in a row at most (not after a mistake)"))  # fmt: skip
_EVAL: tuple[Flag, ...] = (
    ("--checkpoint", dict(default="latest", metavar="latest|all|best:METRIC|STEP[,STEP]|PATH",
     help="which checkpoint to evaluate (default: latest)")),
    ("--watch", dict(action="store_true",
     help="evaluate each checkpoint once, as they come, until the run's last step")),
    ("--html", dict(metavar="FILE",
     help="write a page of errors; with several checkpoints, the last two side by side")),
    *_PROCESS_FLAGS,
)  # fmt: skip
_INFER: tuple[Flag, ...] = (
    ("--prompt", dict(action="append", default=[], metavar="TEXT",
     help="a text to continue or to transform; may be repeated")),
    ("--input", dict(metavar="FILE", help="prompts: text lines or JSON lines; - for stdin")),
    ("--output", dict(metavar="FILE",
     help="where JSON lines go (default: stdout); called again after an interruption, it goes on")),
    ("--shard", dict(metavar="I/N",
     help="take every N-th prompt from the I-th, I from 0; --output gets -I-of-N in its name")),
    ("--overwrite", dict(action="store_true", help="replace the output file if it exists")),
    ("--checkpoint", dict(default="latest", metavar="latest|best:METRIC|STEP|PATH",
     help="which checkpoint to use (default: latest)")),
    *_PROCESS_FLAGS,
)  # fmt: skip
_SERVE: tuple[Flag, ...] = (
    ("--checkpoint", dict(default="latest", metavar="latest|best:METRIC|STEP|PATH",
     help="which checkpoint to serve (default: latest)")),
    ("--host", dict(default="127.0.0.1", metavar="ADDRESS",
     help="where to listen (default: 127.0.0.1, for programs on this machine only)")),
    ("--port", dict(type=int, default=8000, metavar="N", help="default: 8000; 0: any free one")),
    ("--api_key", dict(metavar="KEY",
     help="what clients must give; better set T5X_LITE_API_KEY, which others here can't see")),
)  # fmt: skip
_VOCAB: tuple[Flag, ...] = (
    ("--input", dict(action="append", default=[], metavar="GLOB",
     help="text files, plain or .gz; may be repeated. Without it: the training text of the task "
          "of --gin_file")),
    ("--output", dict(required=True, metavar="FILE", help="the vocabulary to write; must be new")),
    ("--size", dict(type=int, default=32100, metavar="N",
     help="number of ids, extra ids included (default: 32100, as T5)")),
    ("--model_type", dict(choices=("unigram", "bpe"), default="unigram",
     help="kind of SentencePiece model: unigram (default), or bpe, which trains faster")),
    ("--extra_ids", dict(type=int, default=100, metavar="N",
     help="number of sentinels for span corruption (default: 100)")),
    ("--max_bytes", dict(type=int, default=20_000_000, metavar="N",
     help="text to train on; of more, an even sample of documents (default: 20000000)")),
    ("--user_symbol", dict(action="append", default=[], metavar="TEXT",
     help="a string that is always one piece, such as [NLU]; may be repeated")),
)  # fmt: skip
_DATA: tuple[Flag, ...] = (
    ("what", dict(nargs="*",
     help="a gin file to show the data of; or: build NAME, to prepare a TFDS dataset; or: cache, "
          "to write the token ids of --gin_file")),
    ("--html", dict(metavar="FILE", help="show it as a page of its own, too")),
    ("--records", dict(type=int, default=3, metavar="N",
     help="how many records of each task to show (default: 3)")),
    ("--data_dir", dict(metavar="FOLDER", help="build: where TFDS keeps its datasets")),
    ("--file_format", dict(default="array_record", metavar="FORMAT",
     help="build: array_record, the one format that is written right without TensorFlow")),
    ("--cache_dir", dict(metavar="FOLDER",
     help="cache: where to write; each task gets a folder of its name in it")),
    ("--shards", dict(type=int, metavar="N",
     help="cache: files for the training split (default: one for 256 MB of text)")),
    ("--num_workers", dict(type=int, default=0, metavar="N",
     help="cache: processes (default: 0, this one only)")),
)  # fmt: skip
_PLAN: tuple[Flag, ...] = (
    ("--topology", dict(required=True, metavar="NAME",
     help="v5e-256, 2xv5e-256 (slices), v5p:4x4x8 (chips by shape), gpu:h100x8, cpu")),
    ("--price", dict(type=float, metavar="X", help="of one chip for one hour")),
    ("--json", dict(action="store_true", help="print one JSON object")),
    ("--html", dict(metavar="FILE", help="write a page of its own, too")),
    ("--search", dict(action="store_true",
     help="try mesh shapes, remat policies and micro-batches; print time against memory")),
    ("--rows_per_chip", dict(metavar="N[,N]",
     help="search: batches to try, in rows a chip (default: the recipe's batch only)")),
    ("--budget_minutes", dict(type=float, default=30.0, metavar="X",
     help="search: when to start no more compiling (default: 30)")),
    ("--workers", dict(type=int, metavar="N",
     help="search: processes that compile (default: one a core)")),
    ("--best", dict(metavar="FILE", help="search: write the best layout as a gin file")),
    ("--cache_dir", dict(metavar="FOLDER",
     help="where compiled results are kept (default: ~/.cache/t5x_lite/plan)")),
)  # fmt: skip
_CONVERT: tuple[Flag, ...] = (
    ("--from", dict(dest="source", required=True, metavar="FOLDER",
     help="a folder of Hugging Face, a checkpoint of T5X, or a run or checkpoint of t5x_lite")),
    ("--to", dict(required=True, metavar="FOLDER", help="what to write; must be new")),
    ("--format", dict(choices=("huggingface", "t5x_lite", "peft"),
     help="what to write (default: t5x_lite from Hugging Face, else huggingface; peft: a run's "
          "LoRA alone)")),
    ("--dtype", dict(choices=("float32", "bfloat16", "float16"),
     help="of the weights written (default: as they are)")),
    ("--as_causal", dict(action="store_true",
     help="write a prefix LM for transformers, too, where its prompts get a causal mask")),
    ("--config", dict(metavar="FILE",
     help="the model, where the folder doesn't say it: a gin file with MODEL, or a config.json")),
    ("--vocabulary", dict(metavar="FILE",
     help="a SentencePiece .model, a tokenizer.json, 'bytes', or 'none': ids as they "
     "are (default: what is found)")),
)  # fmt: skip
_REPORT: tuple[Flag, ...] = (
    ("runs", dict(nargs="+", metavar="RUN", help="a run's folder; several are compared")),
    ("--html", dict(metavar="FILE",
     help="where the page goes (default: RUN/report.html; of several: compared_runs.html)")),
    ("--json", dict(action="store_true", help="print one JSON object instead")),
)  # fmt: skip
_EXPLAIN: tuple[Flag, ...] = (
    ("runs", dict(nargs="+", metavar="RUN",
     help="a run's folder, or a checkpoint in it; with a second one, what differs")),
    ("--text", dict(metavar="TEXT",
     help="what to look at; with <extra_id_0> in it the model fills that in (default: a held-out "
          "text)")),
    ("--target", dict(metavar="TEXT", help="what the model should answer to the text")),
    ("--top", dict(type=int, default=5, metavar="N",
     help="how many alternatives of each token to show (default: 5)")),
    ("--html", dict(metavar="FILE", help="write a page with attention, too")),
    ("--json", dict(action="store_true", help="print one JSON object")),
)  # fmt: skip
_DOCTOR: tuple[Flag, ...] = (
    ("--json", dict(action="store_true", help="print one JSON object")),
)  # fmt: skip
DEBUG = ("--debug", dict(action="store_true",
    help="show the stack trace of every error"))  # fmt: skip


class Verb(NamedTuple):
    """A verb's program has `main(args: argparse.Namespace) -> int`, its exit status."""

    module: str
    help: str
    example: str  # one command a line
    flags: tuple[Flag, ...] = ()
    root: str | None = None  # what it calls, once the config is read; None: it reads it itself
    gin: bool = True


VERBS = {
    "train": Verb(
        "t5x_lite.programs.train",
        "train a model, or continue where a run stopped",
        "t5x_lite train --gin_file=recipes/quickstart.gin --dry_run\n"
        "t5x_lite train --gin_file=FILE.gin --gin.MODEL_DIR=/tmp/run --restart=3\n"
        "t5x_lite train --gin_file=/tmp/run/config.gin --gin.train.total_steps=1000",
        (_DRY_RUN, _RESTART, *_PROCESS_FLAGS),
        root="train",
    ),
    "eval": Verb(
        "t5x_lite.programs.eval",
        "evaluate checkpoints of a run on its held-out data",
        "t5x_lite eval --gin_file=/tmp/run/config.gin --checkpoint=latest\n"
        "t5x_lite eval --gin_file=/tmp/run/config.gin --checkpoint=all "
        "--gin.evaluate.batch_count=10",
        _EVAL,
        root="evaluate",
    ),
    "infer": Verb(
        "t5x_lite.programs.infer",
        "complete or transform texts with a trained model",
        't5x_lite infer --gin_file=/tmp/run/config.gin --prompt="def main("\n'
        "t5x_lite infer --gin_file=/tmp/run/config.gin --input=prompts.txt --output=out.jsonl",
        _INFER,
        root="infer",
    ),
    "serve": Verb(
        "t5x_lite.programs.serve",
        "serve a trained model over HTTP, as OpenAI's interface, and a page to try it",
        "t5x_lite serve --gin_file=/tmp/run/config.gin\n"
        "t5x_lite serve --gin_file=/tmp/run/config.gin --port=9000 --gin.ServeConfig.slots=16",
        _SERVE,
        root="infer",
    ),
    "vocab": Verb(
        "t5x_lite.programs.vocab",
        "train a SentencePiece vocabulary on your text",
        "t5x_lite vocab --input='texts/*.txt' --size=8000 --output=my.model\n"
        "t5x_lite vocab --gin_file=recipes/quickstart.gin --size=4096 --output=my.model",
        _VOCAB,
    ),
    "data": Verb(
        "t5x_lite.programs.data",
        "show a task's data, stage by stage; build TFDS datasets; cache token ids",
        "t5x_lite data recipes/quickstart.gin --html=data.html\n"
        "t5x_lite data build glue/cola --data_dir=/tmp/tfds\n"
        "t5x_lite data cache --gin_file=recipes/quickstart.gin --cache_dir=/tmp/ids",
        _DATA,
    ),
    "plan": Verb(
        "t5x_lite.programs.plan",
        "show memory, time and cost of a run on TPUs or GPUs that aren't here",
        "t5x_lite plan --gin_file=recipes/quickstart.gin --topology=v5e-4\n"
        "t5x_lite plan --gin_file=recipes/t5_1_1_xl_c4.gin --topology=v5e-256 --search "
        "--best=layout.gin",
        _PLAN,
    ),
    "convert": Verb(
        "t5x_lite.programs.convert",
        "convert weights from and to Hugging Face, and from T5X",
        "t5x_lite convert --from=/tmp/run --to=/tmp/run_for_transformers\n"
        "t5x_lite convert --from=./t5-v1_1-small --to=/tmp/t5_small",
        _CONVERT,
        gin=False,
    ),
    "corpus": Verb(
        "t5x_lite.programs.corpus",
        "make a clean, deduplicated dataset of raw documents, with a data card",
        "t5x_lite corpus --gin_file=corpus/web_en.gin --gin.INPUT=./raw --gin.OUTPUT=./tfds",
    ),
    "report": Verb(
        "t5x_lite.programs.report",
        "show a run, or compare several, as one page that opens offline",
        "t5x_lite report runs/quickstart\n"
        "t5x_lite report runs/quickstart runs/quickstart_lm --html=both.html",
        _REPORT,
        gin=False,
    ),
    "explain": Verb(
        "t5x_lite.programs.explain",
        "look inside a model: how likely each token is, what else it expects, what it attends to",
        't5x_lite explain runs/quickstart --text="import <extra_id_0> as np" --html=page.html\n'
        "t5x_lite explain runs/quickstart/checkpoints/100 runs/quickstart/checkpoints/400",
        _EXPLAIN,
    ),
    "doctor": Verb(
        "t5x_lite.programs.doctor",
        "show versions, devices and what is missing on this machine",
        "t5x_lite doctor --json",
        _DOCTOR,
        gin=False,
    ),
}
