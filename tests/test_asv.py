"""Every benchmark runs once as a test; asv finds them, runs one, and its site shows the graph in a real browser."""

import functools
import http.server
import importlib
import inspect
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import pytest

import numconv

ASV_BENCH = Path(__file__).parents[1] / "asv_bench"
FILES = sorted(path.stem for path in (ASV_BENCH / "benchmarks").glob("[a-z]*.py") if path.stem != "common")
KINDS = ("time_", "timeraw_", "track_", "peakmem_")


def benchmarks():
    """Every class of every file with every combination of its parameters."""
    sys.path.insert(0, str(ASV_BENCH))
    try:
        files = [importlib.import_module(f"benchmarks.{name}") for name in FILES]
    finally:
        sys.path.remove(str(ASV_BENCH))
    for file in files:
        for name, kind in inspect.getmembers(file, inspect.isclass):
            if kind.__module__ == file.__name__:
                params = getattr(kind, "params", ())
                several = all(isinstance(values, tuple) for values in params)
                for chosen in itertools.product(*(params if several else (params,))):
                    yield pytest.param(kind, chosen, id=f"{name}-{'-'.join(map(str, chosen))}")


@pytest.mark.parametrize(("kind", "parameters"), list(benchmarks()))
def test_benchmark_runs_once(kind, parameters):
    benchmark = kind()
    if hasattr(benchmark, "seconds"):
        benchmark.seconds = 0
    try:
        getattr(benchmark, "setup", lambda *_: None)(*parameters)
    except NotImplementedError as reason:  # asv's way to leave one out
        pytest.skip(str(reason))
    names = [name for name in dir(benchmark) if name.startswith(KINDS)]
    assert names
    for name in names:
        result = getattr(benchmark, name)(*parameters)
        if name.startswith("timeraw_"):
            subprocess.run([sys.executable, "-c", result], check=True)
        elif name.startswith("track_"):
            assert result > 0
    getattr(benchmark, "teardown", lambda *_: None)(*parameters)


# asv itself ---------------------------------------------------------------------------------------------------------

needs_asv = pytest.mark.skipif(
    not (find_spec("asv") and shutil.which("git")), reason="needs git and asv: pip install '.[bench]'"
)


def asv(*arguments, config):
    """asv's output; it measures the numconv of this test, and keeps what it knows of the machine to itself."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= dict.fromkeys(("HOME", "USERPROFILE"), str(config.parent))
    environment["ASV_PYTHONPATH"] = str(Path(numconv.__file__).parents[1])
    command = [sys.executable, "-m", "asv", *arguments, "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=config.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """asv's configuration on a repository with two commits, as a checkout may have no history, and these commits."""
    folder = tmp_path_factory.mktemp("asv")
    settings = json.loads((ASV_BENCH / "asv.conf.json").read_text(encoding="utf-8"))
    settings |= {"repo": str(folder / "repo"), "benchmark_dir": str(ASV_BENCH / "benchmarks")}
    config = folder / "asv.conf.json"
    config.write_text(json.dumps(settings), encoding="utf-8")
    git = ["git", "-C", str(folder / "repo"), "-c", "user.name=asv", "-c", "user.email=asv@example.org"]
    subprocess.run(["git", "init", "--quiet", "--initial-branch", "main", str(folder / "repo")], check=True)
    for message in ("first", "second"):
        subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", message], check=True)
    log = subprocess.run([*git, "log", "--format=%H"], check=True, capture_output=True, text=True)
    asv("machine", "--yes", config=config)
    return config, log.stdout.split()


@needs_asv
def test_asv_finds_nothing_wrong(project):
    assert "No problems found" in asv("check", "-E", "existing:same", config=project[0])


@pytest.fixture(scope="module")
def site(project):
    """A site with a graph of a small benchmark over two commits."""
    config, commits = project
    for commit in commits:
        run = ("run", "--quick", "-E", "existing:same", "--set-commit-hash", commit)
        assert "time_convolve" in asv(*run, "--bench", "SmallCalls.time_convolve", config=config)
    asv("publish", config=config)
    return config.parent / ".asv" / "html"


@needs_asv
def test_asv_runs_and_publishes(site):
    index = json.loads((site / "index.json").read_text(encoding="utf-8"))
    assert "overhead.SmallCalls.time_convolve" in index["benchmarks"]
    graphs = list(site.glob("graphs/**/overhead.SmallCalls.time_convolve.json"))
    assert graphs and len(json.loads(graphs[0].read_text(encoding="utf-8"))) == 2


#: asv's pages load these from content networks; npm has the same files under their names there.
SCRIPTS = {
    "jquery@3.3.1": "dist/jquery.min.js", "flot@0.8.3": "jquery.flot*.js", "blueimp-md5@2.19.0": "js/md5.min.js",
    "bootstrap@3.1.1": "dist/*/bootstrap.min.*", "flot-orderbars@1.0.0": "js/jquery.flot.orderBars.js",
}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def with_local_scripts(site, folder):
    """A copy of the site that needs no network; stupidtable, which sorts a table, is not on npm and left out."""
    shutil.copytree(site, folder / "site")
    npm = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), *SCRIPTS],
        capture_output=True, text=True,
    )
    if npm.returncode:
        pytest.skip(f"npm cannot install what asv's pages load: {npm.stderr.strip().splitlines()[-1:]}")
    for package, pattern in SCRIPTS.items():
        for file in (folder / "node_modules" / package.partition("@")[0]).glob(pattern):
            name = file.name.replace(".js", ".min.js") if package.startswith("flot@") else file.name
            shutil.copy(file, folder / "site" / name)
    (folder / "site" / "stupidtable.min.js").write_text("jQuery.fn.stupidtable = function () { return this; };")
    page = (folder / "site" / "index.html").read_text(encoding="utf-8")
    page = re.sub(r'https://[^"]*/([\w.-]+\.(?:js|css))"\s+integrity="[^"]*"', r'\1"', page)
    page = page.replace("jquery-3.3.1.min.js", "jquery.min.js")
    (folder / "site" / "index.html").write_text(page, encoding="utf-8")
    return folder / "site"


def seen_by_browser(folder, fragment, tmp_path):
    """The page after its scripts have run, as the browser has it."""

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            """Requests are no news."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        flags = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
            "--disable-component-update --disable-sync --virtual-time-budget=15000 --window-size=1300,900 --dump-dom"
        )
        address = f"http://127.0.0.1:{server.server_port}/index.html{fragment}"
        picture = f"--screenshot={tmp_path / 'page.png'}"
        done = subprocess.run(
            [BROWSER, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", picture, address],
            capture_output=True, text=True, timeout=120,
        )
        server.shutdown()
    return done.stdout


@needs_asv
@pytest.mark.skipif(not BROWSER, reason="there is no Chromium")
@pytest.mark.skipif(not shutil.which("npm"), reason="npm brings the scripts that asv's pages load")
def test_a_browser_sees_the_graphs(site, tmp_path):
    local = with_local_scripts(site, tmp_path)
    grid = seen_by_browser(local, "", tmp_path)
    assert "numconv" in grid and "time_convolve" in grid
    page = seen_by_browser(local, "#overhead.SmallCalls.time_convolve", tmp_path)
    assert "flot-base" in page, "flot has drawn no graph"
    assert "time_convolve" in page
