"""What a pickle may never import, whoever approves it: names that lead from loading to running anything.

The list stands behind the allow-list of each trust record, not in its place: a name must be on the record and not here.
"""

import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING

ARRAY_WRAPPER = "joblib.numpy_pickle.NumpyArrayWrapper"
"""Joblib's stand-in for an array; the loader puts a class of its own in its place and never imports joblib for it."""

_PLAIN = frozenset((
    "bool", "bytearray", "bytes", "complex", "dict", "Ellipsis", "float", "frozenset", "int", "list",
    "NotImplemented", "object", "range", "set", "slice", "str", "tuple",
))  # fmt: skip

_STANDARD = {
    "builtins": _PLAIN,
    "_codecs": frozenset(("encode",)),
    "array": frozenset(("_array_reconstructor", "array")),
    "collections": frozenset(("Counter", "OrderedDict", "defaultdict", "deque")),
    "copyreg": frozenset(("__newobj__", "__newobj_ex__", "_reconstructor")),
    "datetime": frozenset(("date", "datetime", "time", "timedelta", "timezone")),
    "decimal": frozenset(("Decimal",)),
    "fractions": frozenset(("Fraction",)),
    "re": frozenset(("_compile",)),
}
"""All that may be had of the standard library. The rest of it opens files and runs programs under a thousand names."""

_GONE = frozenset((
    "__main__", "_bootsubprocess", "_winapi", "_xxsubinterpreters", "aifc", "asynchat", "asyncore", "cgi", "cgitb",
    "chunk", "commands", "crypt", "distutils", "httplib", "imp", "lib2to3", "mailcap", "msilib", "msvcrt", "nis",
    "nntplib", "nt", "ossaudiodev", "pipes", "smtpd", "sndhdr", "spwd", "sunau", "telnetlib", "test", "urllib2",
    "uu", "winreg", "xdrlib",
))  # fmt: skip
"""Modules of other Pythons and platforms; of this one Python knows the names itself."""

_MODULES = frozenset((
    "_cffi_backend", "_distutils_hack", "_pytest", "_yaml", "adbc", "aiohttp", "airflow", "alembic", "ansible",
    "anyio", "apscheduler", "asyncpg", "attr", "attrs", "authlib", "azure", "bokeh", "boto", "boto3", "botocore",
    "build", "celery", "certifi", "cffi", "chainer", "click", "cloudpickle", "coverage", "Crypto", "cryptography",
    "cupy", "Cython", "cython", "dask", "databricks", "deltalake", "dill", "distlib", "distributed", "django",
    "docker", "docutils", "dotenv", "duckdb", "ensurepip", "execnet", "fabric", "fastapi", "filelock", "flask",
    "flask_cors", "flatbuffers", "fontTools", "fsspec", "gcsfs", "gevent", "geventhttpclient", "git", "gitdb",
    "google", "graphene", "greenlet", "grpc", "gunicorn", "h11", "h2", "h5py", "hamilton", "httpcore", "httptools",
    "httpx", "huey", "huggingface_hub", "hypothesis", "invoke", "ipykernel", "IPython", "itsdangerous", "jax",
    "jaxlib", "jedi", "jinja2", "joserfc", "jsonpickle", "jupyter_client", "jupyter_core", "jupyter_server",
    "kedro", "keras", "keyring", "kombu", "kubernetes", "llvmlite", "loky", "loopwright", "lxml", "mako",
    "markdown", "matplotlib", "mlflow", "msgspec", "mypy", "mypyc", "nbconvert", "nbformat", "nltk", "notebook",
    "numba", "numexpr", "oauthlib", "onnx", "onnxmltools", "onnxruntime", "openpyxl", "OpenSSL", "opentelemetry",
    "paramiko", "pathlib2", "pexpect", "PIL", "pip", "piptools", "pkg_resources", "plotly", "pluggy", "plumbum",
    "polars", "portalocker", "prefect", "psutil", "psycopg", "psycopg2", "ptyprocess", "py", "pyarrow", "pycparser",
    "pydantic", "pygments", "pylab", "pymongo", "pymysql", "pyspark", "pytest", "pyximport", "ray", "redis",
    "requests", "rich", "rq", "s3fs", "selenium", "setuptools", "sh", "shap", "skl2onnx", "skops", "smart_open",
    "snowflake", "soundfile", "spacy", "sqlalchemy", "sqlglot", "sqlparse", "starlette", "streamlit", "tables",
    "tensorboard", "tensorflow", "threadpoolctl", "torch", "torchvision", "tornado", "tqdm", "transformers",
    "truststore", "twisted", "typer", "urllib3", "uv", "uvicorn", "uvloop", "virtualenv", "waitress", "watchdog",
    "watchfiles", "websocket", "websockets", "werkzeug", "wheel", "win32api", "win32com", "wrapt", "xdist", "xlrd",
    "yaml", "zmq", "zope",
))  # fmt: skip
"""Other top-level modules of which nothing may be had: they start programs, reach out, load code or keep objects."""

_MAKERS = frozenset((
    "_codecs.encode", "array._array_reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__",
    "copyreg._reconstructor", "numpy._core.multiarray._reconstruct", "numpy._core.multiarray.scalar",
    "numpy._core.numeric._frombuffer", "numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar",
    "numpy.core.numeric._frombuffer", "numpy.ma.core._mareconstruct", "numpy.random._pickle.__bit_generator_ctor",
    "numpy.random._pickle.__generator_ctor", "numpy.random._pickle.__randomstate_ctor",
    "pandas._libs.internals._unpickle_block", "pandas._libs.tslibs.nattype._nat_unpickle",
    "pandas._libs.tslibs.timedeltas._timedelta_unpickle", "pandas._libs.tslibs.timestamps._unpickle_timestamp",
    "pandas.core.indexes.base._new_Index", "pandas.core.indexes.datetimes._new_DatetimeIndex",
    "pandas.core.indexes.period._new_PeriodIndex", "pytz._p", "pytz._UTC", "re._compile",
    "sklearn.metrics._dist_metrics.newObj", "sklearn.neighbors._ball_tree.newObj",
    "sklearn.neighbors._kd_tree.newObj",
))  # fmt: skip
"""Functions that plain models call while they are loaded; besides them, classes are called and nothing else."""

_PACKAGES = (
    "numpy.ctypeslib", "numpy.distutils", "numpy.f2py", "numpy.lib._datasource", "numpy.lib._npyio_impl",
    "numpy.lib.format", "numpy.lib._format_impl", "numpy.lib.npyio", "numpy.lib.utils", "numpy.testing",
    "numpy._pytesttester", "pandas._testing", "pandas.compat", "pandas.core.computation", "pandas.io",
    "pandas.plotting", "pandas.testing", "pandas.tests", "pandas.util", "scipy.datasets", "scipy.io", "scipy._lib",
    "scipy.sparse._matrix_io", "scipy.special._precompute", "scipy.stats", "sklearn._build_utils",
    "sklearn.conftest", "sklearn.datasets", "sklearn.externals", "sklearn.tests", "sklearn.utils._joblib",
    "sklearn.utils._testing", "sklearn.utils.discovery", "sklearn.utils.estimator_checks", "sklearn.utils.parallel",
    "sklearn.utils.tests",
)  # fmt: skip
"""Packages of allowed libraries that read files, import by name, compile or run what they are given. A distribution of
scipy.stats executes a text that is part of its state."""

_MASKED = frozenset(("MaskedArray", "MaskedConstant", "_mareconstruct", "mvoid"))
"""What is had of numpy.ma: its other classes call methods by a name they are given."""

_NAMES = frozenset((
    "__builtins__", "__class__", "__code__", "__dict__", "__getattribute__", "__globals__", "__import__",
    "__reduce__", "__subclasses__", "_ufunc_reconstruct", "apply_along_axis", "apply_over_axes", "attrgetter",
    "call", "DataSource", "delayed", "eval", "exec", "execute", "fromfile", "fromfunction", "frompyfunc",
    "fromregex", "genfromtxt", "getattr", "import_module", "itemgetter", "load", "load_npz", "loads", "loadtxt",
    "memmap", "methodcaller", "open", "open_memmap", "partial", "piecewise", "popen", "read_pickle", "reduce",
    "runstring", "safe_eval", "save", "save_npz", "savetxt", "savez", "savez_compressed", "setattr", "spawn",
    "system", "tofile", "vectorize",
))  # fmt: skip
"""Names that are refused in any module."""


def canonical(module: str, name: str) -> tuple[str, str]:
    """The names Python 3 would look up for those a pickle of Python 2 carries."""
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return IMPORT_MAPPING.get(module, module), name


def denied(module: str, name: str) -> str:
    """Why this global may never be imported by a pickle, or ""."""
    full = f"{module}.{name}"
    root = module.partition(".")[0]
    if full == ARRAY_WRAPPER:
        return ""
    if not full.isascii() or not all(part.isidentifier() for part in full.split(".")):
        return "not a name"
    if "." in name:
        return "a dotted name reaches into an object"
    if root == "builtins":
        return "" if name in _PLAIN else "a builtin that can run or reach anything"
    if module in _STANDARD and name in _STANDARD[module]:
        return ""
    if root in _STANDARD:
        return f"of {root} only what plain models need may be had"
    if root in sys.stdlib_module_names or root in _GONE or root in _MODULES or root == "joblib":
        return f"nothing of {root} may be had"
    if (module == "numpy.ma" or module.startswith("numpy.ma.")) and name not in _MASKED:
        return "it may call any method by its name"
    if any(module == package or module.startswith(f"{package}.") for package in _PACKAGES):
        return "its package reads files or runs what it is given"
    return "a name that runs or reaches what it is given" if name in _NAMES else ""


def makes(module: str, name: str, arguments: int) -> bool:
    """Whether this function, found under that name, is one that plain models call while they are loaded.

    What Cython writes for its classes, `__pyx_unpickle_…`, makes an object of one class. numpy's makers of random
    generators would call a second argument.
    """
    if module == "numpy.random._pickle" and arguments > 1:
        return False
    return f"{module}.{name}" in _MAKERS or name.startswith("__pyx_unpickle_")
