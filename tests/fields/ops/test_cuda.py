"""Do the CUDA kernels compile for every card, do they compute what the references do, and does the launcher hold?

Without a GPU: NVRTC compiles every kernel and reports what it uses; the emulator runs the kernels' own tests on the
CPU, through the real launcher, also under AddressSanitizer and ThreadSanitizer, which are shown to find planted faults.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from helpers import cuda_budgets
from helpers import cuda_emulator as emulator

from polyfield.fields.errors import NativeError
from polyfield.fields.ops import _cuda, _nvrtc

BUDGETS = json.loads(cuda_budgets.BUDGETS.read_text())
TESTED = (
    "ops/test_ray_box",
    "ops/test_frequency_encode",
    "ops/test_spherical_harmonics",
    "ops/test_adam",
    "ops/test_hash_encode",
    "ops/test_factored_encode",
    "ops/test_sparse_grid",
    "ops/test_modulate",
    "ops/test_composite",
    "ops/test_distortion",
    "ops/test_occupancy",
    "ops/test_march",
    "ops/test_mesh_bvh",
    "ops/test_fused_mlp",
    "ops/test_radiance_step",
    "optim/test_radiance_program",
)
HELPERS = Path(emulator.__file__).parent


def _no_nvrtc() -> str | None:
    try:
        _nvrtc.nvrtc()
    except NativeError as error:
        return str(error)
    return None


needs_nvrtc = pytest.mark.skipif(_no_nvrtc() is not None, reason=str(_no_nvrtc()))
needs_emulator = pytest.mark.skipif(emulator.why_not() is not None, reason=str(emulator.why_not()))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emulator.build("plain", tmp_path_factory.mktemp("emulator"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where NVRTC's results are kept: it compiles each file once for all of these tests, not once in each."""
    return tmp_path_factory.mktemp("cache")


def run_python(code: str, environment: dict[str, str], timeout: float = 300) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)


# --- compiling


@pytest.mark.slow
@needs_nvrtc
@pytest.mark.parametrize("architecture", cuda_budgets.ARCHITECTURES)
def test_every_kernel_compiles_within_its_budget(architecture):
    if architecture not in _nvrtc.nvrtc().architectures():
        pytest.skip(f"NVRTC {_nvrtc.nvrtc().version} does not know sm_{architecture}")
    found = {k: v for file in cuda_budgets.FILES for k, v in cuda_budgets.measure(file, architecture).items()}
    assert set(found) == set(BUDGETS), "run tests/helpers/cuda_budgets.py"
    over = {
        f"{name}: {what} {value} > {BUDGETS[name][what]}"
        for name, kernel in found.items()
        for what, value in kernel.items()
        if value > BUDGETS[name][what]
    }
    assert not over


def test_every_kernel_file_is_known_to_the_launcher():
    assert sorted(path.stem for path in (emulator.CUDA / "gpu").glob("*.cu")) == cuda_budgets.FILES
    for name in BUDGETS:
        prefixes = [prefix for prefix in _cuda.FILES if name.startswith(prefix)]
        assert len(prefixes) == 1, name


@needs_nvrtc
def test_a_compile_error_is_one_line_and_its_log_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYFIELD_CACHE", str(tmp_path))
    with pytest.raises(NativeError, match=r"bad\.cu does not compile for sm_90: .*not_declared.*whole log:") as caught:
        _nvrtc.compile_kept("bad.cu", 'extern "C" __global__ void k() { not_declared(); }', {}, 90)
    assert "\n" not in str(caught.value)
    assert len(list((tmp_path / "cubin").glob("*.log"))) == 1


@needs_nvrtc
def test_a_cubin_is_compiled_once_and_again_where_it_was_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYFIELD_CACHE", str(tmp_path))
    calls = []
    compile_one = _nvrtc.Nvrtc.compile
    monkeypatch.setattr(_nvrtc.Nvrtc, "compile", lambda *a, **k: calls.append(a) or compile_one(*a, **k))
    text = 'extern "C" __global__ void k(int* x) { *x = 1; }'
    first = _nvrtc.compile_kept("k.cu", text, {}, 90)
    assert _nvrtc.compile_kept("k.cu", text, {}, 90) == first
    assert len(calls) == 1
    (kept,) = (tmp_path / "cubin").iterdir()
    kept.write_bytes(b"cut short")
    assert _nvrtc.compile_kept("k.cu", text, {}, 90)[:4] == b"\x7fELF"
    _nvrtc.compile_kept("k.cu", text + " ", {}, 90)
    _nvrtc.compile_kept("k.cu", text, {}, 80)
    assert len(calls) == 4
    assert _nvrtc.clear_kept() == 3
    assert not list((tmp_path / "cubin").iterdir())


def test_the_oldest_cubins_go_first(tmp_path, monkeypatch):
    import os

    monkeypatch.setattr(_nvrtc, "KEPT_BYTES", 25)
    for age in range(5):
        path = tmp_path / f"{age}.cubin"
        path.write_bytes(b"0123456789")
        os.utime(path, (1000 - age, 1000 - age))
    _nvrtc._forget_oldest(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.cubin", "1.cubin"]


# --- the launcher

FREQUENCY = """
    import warnings
    warnings.simplefilter("error" if {strict} else "always")
    import torch
    from polyfield.fields.ops import _cuda, _native
    from polyfield.fields.ops.frequency_encode import frequency_encode, frequency_encode_reference
    x = torch.rand(70, 3)
    torch.testing.assert_close(frequency_encode(x, 4), frequency_encode_reference(x, 4))
    print("usable", _cuda.usable(x), "why", _cuda.unusable(0))
"""


def test_a_missing_driver_is_said_once_and_the_program_goes_on(tmp_path):
    environment = emulator.environment(tmp_path / "none.so", tmp_path) | {"POLYFIELD_BACKEND": ""}
    done = run_python(FREQUENCY.format(strict=False), environment)
    assert done.returncode == 0, done.stderr
    assert "usable False why no NVIDIA driver: " in done.stdout
    assert done.stderr.count("cannot run the CUDA kernels: no NVIDIA driver") == 1


@needs_emulator
def test_an_old_driver_is_refused_with_its_version(tmp_path):
    source = tmp_path / "old.c"
    source.write_text(
        "int cuInit(unsigned f) { return f; }\nint cuDriverGetVersion(int* v) { *v = 11080; return 0; }\n"
        'int cuGetErrorString(int e, const char** s) { *s = "x"; return e; }\n'
    )
    subprocess.run(["gcc", "-shared", "-fPIC", str(source), "-o", str(tmp_path / "old.so")], check=True)
    done = run_python(FREQUENCY.format(strict=False), emulator.environment(tmp_path / "old.so", tmp_path))
    assert "the NVIDIA driver knows CUDA 11.8; at least 12.0 is needed" in done.stdout, done.stderr


@needs_nvrtc
@needs_emulator
def test_backends_cpu_and_reference_leave_cuda_alone(plain, cache):
    for backend, expected in (("", True), ("cpu", False), ("reference", False)):
        environment = emulator.environment(plain, cache) | {"POLYFIELD_BACKEND": backend}
        done = run_python(FREQUENCY.format(strict=backend == ""), environment)
        if backend == "cpu" and "no native CPU library" in done.stderr:
            continue
        assert f"usable {expected}" in done.stdout, done.stderr


@needs_nvrtc
@needs_emulator
def test_kernels_are_launched_from_several_threads_at_once(plain, cache):
    code = """
        import threading, torch
        from polyfield.fields.ops.frequency_encode import frequency_encode, frequency_encode_reference
        wrong = []
        def work(seed):
            x = torch.rand(300, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()
            for _ in range(5):
                y = frequency_encode(x, 4)
                (g,) = torch.autograd.grad(y.square().sum(), x)
                (h,) = torch.autograd.grad(frequency_encode_reference(x, 4).square().sum(), x)
                if not torch.allclose(g, h): wrong.append(seed)
        threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
        for t in threads: t.start()
        for t in threads: t.join()
        print("wrong", wrong)
    """
    done = run_python(code, emulator.environment(plain, cache))
    assert "wrong []" in done.stdout, done.stderr


# --- determinism


@needs_nvrtc
@needs_emulator
def test_deterministic_gradients_of_the_table_do_not_depend_on_the_order_of_sums(plain, cache):
    code = """
        import torch
        from polyfield.fields.ops.hash_encode import HashGridSpec, hash_encode, hash_value_and_jacobian
        spec = HashGridSpec(levels=3, channels=2, base_resolution=2, finest_resolution=8, log2_table_size=6)
        table = torch.rand(spec.entries, 2).requires_grad_()
        x, g, h = torch.rand(3000, 3), torch.randn(3000, 6), torch.randn(3000, 3, 6)
        def gradients(order):
            y = hash_encode(x[order], table, spec)
            a, b = hash_value_and_jacobian(x[order], table, spec)
            first = torch.autograd.grad(y, table, g[order])
            return first + torch.autograd.grad((a, b), table, (g[order], h[order]))
        shuffled, straight = torch.randperm(3000), torch.arange(3000)
        floats = gradients(straight), gradients(shuffled)
        torch.use_deterministic_algorithms(True)
        exact = gradients(straight), gradients(shuffled)
        print("floats vary", not torch.equal(floats[0][0], floats[1][0]))
        print("equal", all(torch.equal(a, b) for a, b in zip(*exact)))
        for mine, theirs in zip(exact[0], floats[0]):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
        g[7, 2] = float("nan")
        print("nan", bool(gradients(straight)[0].isnan().any()))
    """
    done = run_python(code, emulator.environment(plain, cache))
    assert done.stdout.split("\n")[:3] == ["floats vary True", "equal True", "nan True"], done.stderr


SUMS = {
    "planes": """
from polyfield.fields.ops.factored_encode import FactoredGridSpec, Term, factored_encode
spec = FactoredGridSpec(terms=(Term(factors=("xy", "xz", "z"), channels=5, resolution=(4, 5, 6)),))
values = (3 * torch.randn(spec.parameter_count)).requires_grad_()
encode = lambda x: factored_encode(x, values, spec)
""",
    "voxels": """
from polyfield.fields.ops.sparse_grid import sparse_grid_sample
index = torch.arange(120, dtype=torch.int32).reshape(4, 5, 6)
values = torch.randn(120, 5).requires_grad_()
encode = lambda x: sparse_grid_sample(x, values, index)
""",
}


@needs_nvrtc
@needs_emulator
@pytest.mark.parametrize("of", SUMS)
def test_deterministic_gradients_do_not_depend_on_the_order_of_sums(of, plain, cache):
    code = f"""
import torch
{SUMS[of]}
x, g = torch.rand(3000, 3), torch.randn(3000, 5)
def gradient(order):
    return torch.autograd.grad(encode(x[order]), values, g[order])[0]
shuffled, straight = torch.randperm(3000), torch.arange(3000)
floats = gradient(straight), gradient(shuffled)
torch.use_deterministic_algorithms(True)
exact = gradient(straight), gradient(shuffled)
print("floats vary", not torch.equal(*floats))
print("equal", torch.equal(*exact))
torch.testing.assert_close(exact[0], floats[0], rtol=1e-3, atol=1e-3)
g[7, 2] = float("nan")
print("nan", bool(gradient(straight).isnan().any()))
"""
    done = run_python(code, emulator.environment(plain, cache))
    assert done.stdout.split("\n")[:3] == ["floats vary True", "equal True", "nan True"], done.stderr


# --- the kernels


@pytest.mark.slow
@needs_nvrtc
@needs_emulator
@pytest.mark.parametrize("file", TESTED)
def test_kernels_pass_their_operators_tests_in_the_emulator(file, plain, cache):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/fields/{file}.py"]
    environment = emulator.environment(plain, cache)
    done = subprocess.run(
        command, env=environment, cwd=emulator.ROOT, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
@needs_nvrtc
@needs_emulator
@pytest.mark.parametrize("kind", ["asan", "tsan"])
def test_sanitizers_find_nothing_in_the_kernels(kind, cache, tmp_path):
    library = emulator.build(kind, tmp_path / kind)
    command = [sys.executable, str(HELPERS / "every_kernel.py"), "cpu"]
    environment = emulator.environment(library, cache, kind)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == sorted(BUDGETS)


@pytest.mark.slow
@needs_emulator
@pytest.mark.parametrize(
    ("kind", "kernel", "finding"),
    [
        (
            "plain",
            "divergent_barrier",
            r"deadlock: block \(0, 0, 0\) thread \(0, 0, 0\) waits at the barrier .*\.cu:\d+",
        ),
        (
            "plain",
            "divergent_shuffle",
            r"deadlock: block \(0, 0, 0\) thread \(96, 0, 0\) waits at the warp collective .*\.cu:\d+",
        ),
        ("plain", "absent_lane", r"reads lane 20, which takes no part in the collective .*\.cu:\d+"),
        ("plain", "nothing", None),
        ("asan", "out_of_bounds", r"heap-buffer-overflow(.|\n)*planted_faults\.cu"),
        ("asan", "nothing", None),
        ("tsan", "missing_barrier", r"data race(.|\n)*planted_faults\.cu"),
        ("tsan", "nothing", None),
    ],
)
def test_planted_faults_are_found(kind, kernel, finding, cache, tmp_path):
    library = emulator.build(kind, tmp_path / kind, [HELPERS / "planted_faults.cu"])
    code = f"""
        import ctypes
        driver = ctypes.CDLL({str(library)!r})
        kernel, text = ctypes.c_void_p(), ctypes.c_char_p()
        assert driver.cuLibraryGetKernel(ctypes.byref(kernel), None, b"pf_planted_{kernel}") == 0
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        values, count = ctypes.c_void_p(libc.malloc(400)), ctypes.c_longlong(100)
        places = (ctypes.c_void_p * 2)(ctypes.addressof(values), ctypes.addressof(count))
        failed = driver.cuLaunchKernel(kernel, 1, 1, 1, 256, 1, 1, 0, None, places, None)
        driver.cuGetErrorString(failed, ctypes.byref(text))
        print(text.value.decode() if failed else "launched")
    """
    done = run_python(code, emulator.environment(library, cache, kind))
    output = done.stdout + done.stderr
    if finding:
        assert re.search(finding, output), output[-3000:]
    else:
        assert done.returncode == 0, output[-3000:]
        assert "launched" in output


@pytest.mark.slow
@needs_nvrtc
@needs_emulator
@pytest.mark.parametrize(
    ("options", "kernels", "tolerance"),
    [
        ('precision="fp32", exposure=True', "pf_composite_backward_f32", 0.02),  # composed
        # Within a factor of two only: the program says losses and adapts its rays two steps later, and leaves out rays
        # without room, so its batches are others. That a step is the same is tested in test_radiance_program.py.
        ('precision="bf16"', "pf_radiance_finish", 1.0),
    ],
    ids=["composed", "program"],
)
def test_training_by_the_cuda_kernels_is_training_by_the_cpus(options, kernels, tolerance, plain, cache, tmp_path):
    code = """
        import sys
        from dataclasses import replace
        from pathlib import Path
        sys.path.insert(0, {helpers!r})
        from helpers.tiny import tiny_scene
        from polyfield.fields.ops import _cuda
        from polyfield.scenes import TrainOptions, train
        from polyfield.scenes.presets import PRESETS, hash_preset
        # 128^3 cells, and pictures of the first fog, would take minutes.
        PRESETS["hash"] = lambda around: replace(hash_preset(around), resolution=32)
        train._Session.evaluate = train._Session.preview = lambda *_: None
        names, launch = set(), _cuda.call
        _cuda.call = lambda name, *rest: (names.add(name), launch(name, *rest))
        options = TrainOptions(max_steps=30, samples=4096, {options})
        train.train_scene(tiny_scene(), options, run=Path({out!r}))
        print({kernels!r} in names)
    """
    losses = []
    for name in ("cpu", "cuda"):
        out = tmp_path / name
        environment = emulator.environment(plain, cache) | {"POLYFIELD_BACKEND": "cpu" if name == "cpu" else ""}
        text = code.format(helpers=str(HELPERS.parent), out=str(out), options=options, kernels=kernels)
        done = run_python(text, environment, timeout=500)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.strip() == str(name == "cuda")
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses.append({line["step"]: line["loss"] for line in lines if "loss" in line})
    assert losses[1] == {step: pytest.approx(loss, rel=tolerance) for step, loss in losses[0].items()}
    assert losses[1][30] < 0.5 * losses[1][10]
