"""`make gpu-proof`: nothing is lost by a kill, all is measured once, and the docs get what was measured and no more."""
import argparse
import json
import pathlib
import shutil
import sys
import time
import types

import pytest

from benchmarks import kernels, predict
from benchmarks.gpu_proof import __main__ as command
from benchmarks.gpu_proof import checks, fill, jobs, process, results, work
from pipeline import config
from pipeline.runtime.problem import Problem

ROOT = pathlib.Path(__file__).parent.parent
FACTS = {"card": "NVIDIA H100 80GB HBM3", "torch": "2.11.0", "cuda": "13.0", "driver": "580.1", "commit": "0123456789",
         "date": "2026-11-28", "rehearsal": False, "command": "make it"}  # fmt: skip


def row(key: str, **figures: object) -> results.Row:
    return {"key": key, **FACTS, "figures": figures}


def make_proof(folder: pathlib.Path, rehearsal: bool = False, trained: str = "unet_seed") -> work.Proof:
    configs = [ROOT / "configs" / path for path in ("kaggle.yaml", "unet_640_refined.yaml", "unet_seed.yaml")]
    return work.Proof(rehearsal, "proof", folder, None, ROOT / f"configs/{trained}.yaml", configs)


# --- the file of rows ------------------------------------------------------------------------------------------------


def test_rows_are_read_as_they_were_written_and_the_last_of_a_key_counts(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert results.read(path) == []
    failed = {"key": "b", **FACTS, "error": "no"}
    rows = [row("a", n=1), failed, row("a", n=2)]
    for each in rows:
        results.append(path, each)
    assert results.read(path) == rows
    assert {key: each["figures"] for key, each in results.measured(rows).items()} == {"a": {"n": 2}}


@pytest.mark.parametrize("lost_bytes", [1, 5, 40])
def test_a_line_that_a_kill_cut_off_is_ignored_and_makes_room(tmp_path: pathlib.Path, lost_bytes: int) -> None:
    path = tmp_path / "rows.jsonl"
    results.append(path, row("a", n=1))
    results.append(path, row("b", n=2))
    path.write_bytes(path.read_bytes()[:-lost_bytes])
    whole = ["a", "b"] if lost_bytes == 1 else ["a"]  # only the line end was lost
    assert [each["key"] for each in results.read(path)] == whole
    results.append(path, row("c", n=3))
    assert [each["key"] for each in results.read(path)] == [*whole, "c"]
    assert path.read_bytes().endswith(b"\n") and path.read_bytes().count(b"\n") == len(whole) + 1


@pytest.mark.parametrize("line", ["nonsense", '{"key": "a"}', "[1]", json.dumps({"key": "a", **FACTS})])
def test_a_line_in_the_middle_that_is_no_row_is_a_problem(tmp_path: pathlib.Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{line}\n{json.dumps(row('a', n=1))}\n")
    with pytest.raises(Problem, match="^Line 1 of .* is no row of gpu-proof"):
        results.read(path)


# --- pieces ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", ["unet_seed", "unet_640", "unet_640_refined"])
def test_the_pieces_hold_all_jobs_once_in_their_order_and_in_their_time(tmp_path: pathlib.Path, trained: str) -> None:
    listed = jobs.all_jobs(make_proof(tmp_path, trained=trained))
    split = jobs.pieces(listed)
    keys = [job.key for piece in split for job in piece]
    assert list(dict.fromkeys(keys)) == [job.key for job in listed]
    repeated = {key for key in keys if keys.count(key) > 1}
    assert repeated <= {job.key for job in listed if job.resumes}
    limit = jobs.PIECE_S - jobs.START_S
    assert all(sum(job.seconds for job in piece if job.key not in repeated) <= limit for piece in split)
    assert len({job.key for job in listed}) == len(listed)


def test_a_long_training_is_in_as_many_neighbouring_pieces_as_it_needs() -> None:
    def job(key: str, seconds: float, resumes: bool = False) -> jobs.Job:
        return jobs.Job(key, seconds, lambda proof, clock: {}, "", resumes)

    listed = [job("a", 60), job("training", 300, resumes=True), job("b", 40), job("c", 90)]
    split = jobs.pieces(listed, piece_s=160)
    assert [[each.key for each in piece] for piece in split] == [["a", "training"], *[["training"]] * 3, ["b", "c"]]
    assert [[each.key for each in piece] for piece in jobs.pieces([job("a", 500)], piece_s=160)] == [["a"]]


def test_every_config_is_for_a_gpu_or_not() -> None:
    names = {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    for_a_cpu = {"cpu", "cpu_best", "cpu_fast", "cpu_refined", "demo", "rooms"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert {path.stem for path in command.gpu_configs()} == names - for_a_cpu


def run_piece(proof: work.Proof, piece: list[jobs.Job], out: pathlib.Path, later: set[str] = set()) -> list[str]:
    return command.run_piece(proof, piece, later, out, FACTS, deadline=None)


def test_what_is_there_is_not_measured_again_and_what_failed_is(tmp_path: pathlib.Path) -> None:
    calls: list[str] = []

    def measure(key: str) -> jobs.Job:
        def work_of_job(proof: work.Proof, clock: work.Clock) -> dict:
            calls.append(key)
            if key == "fails" and calls.count("fails") == 1:
                raise work.Failed("out of luck.")
            if key == "fault":
                raise KeyError("seconds")
            if key == "blocked":
                raise work.Blocked("something comes first")
            if key == "stopped" and calls.count("stopped") == 1:
                raise work.Stopped
            return {"n": len(calls)}

        return jobs.Job(key, 1, work_of_job, "make it", resumes=True)

    piece, out = [measure(key) for key in ("good", "fails", "fault", "blocked", "stopped")], tmp_path / "rows.jsonl"
    again = ["fault: 'seconds'.", "blocked: something comes first."]
    assert run_piece(make_proof(tmp_path), piece, out) == ["fails: out of luck.", *again]
    assert [each["key"] for each in results.read(out)] == ["good", "fails", "fault"]
    assert run_piece(make_proof(tmp_path), piece, out) == again
    assert calls.count("good") == 1 and {calls.count(job.key) for job in piece[1:]} == {2}
    assert results.measured(results.read(out)).keys() == {"good", "fails", "stopped"}


def test_a_job_is_not_begun_when_too_little_time_is_left(tmp_path: pathlib.Path) -> None:
    piece = [jobs.Job(key, 1000, lambda proof, clock: {"n": 1}, "make it") for key in ("first", "second")]
    out = tmp_path / "rows.jsonl"
    command.run_piece(make_proof(tmp_path), piece, set(), out, FACTS, deadline=time.monotonic() + 300)
    assert [each["key"] for each in results.read(out)] == ["first"]  # the first is always tried


def test_a_command_is_stopped_when_its_time_is_over(capfd: pytest.CaptureFixture) -> None:
    code = "import time; print('begun', flush=True); time.sleep(60)"
    ended = process.run(["-c", code], seconds=1.0)
    assert ended.was_stopped and ended.code < 0 and ended.last_line == "begun" and ended.seconds < 20
    with pytest.raises(work.Stopped):
        work.finished(ended)
    failed = process.run(["-c", "import sys; print('{\"a\": 1}'); print('why', file=sys.stderr); sys.exit(1)"])
    with pytest.raises(work.Failed, match="^why$"):
        work.finished(failed)
    assert not failed.was_stopped and work.last_json(failed) == {"a": 1}
    assert "$ python -c" in capfd.readouterr().out


@pytest.mark.parametrize("piece", [0, 99])
def test_a_piece_that_does_not_exist_is_a_problem(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, piece: int
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpu_proof", "--rehearse", "1", "--piece", str(piece)])
    assert command.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"gpu-proof: PIECE is {piece}, but there are ")


# --- checks ----------------------------------------------------------------------------------------------------------


def test_the_packages_of_this_environment_are_enough() -> None:
    check = checks.packages()
    assert check.is_good and "torch 2." in check.text and "typer" in check.text


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = checks.version
    monkeypatch.setattr(checks, "version", lambda name: "" if name == "timm" else real(name))
    assert not checks.packages().is_good and not checks.packages().is_needed and "timm" in checks.packages().text
    monkeypatch.setattr(checks, "version", lambda name: "" if name == "pandas" else real(name))
    check = checks.packages()
    assert (check.is_good, check.is_needed, check.text) == (False, True, "Packages are missing: install pandas.")


def test_shared_memory_is_compared_with_what_the_loaders_need() -> None:
    settings = config.load(ROOT / "configs/unet_1280.yaml", ["data.workers=16", "train.batch_size=16"])
    batch_bytes = 1280 * 1918 * 4 * 16
    assert checks.shared_memory_bytes(settings, 16) == 2 * 16 * batch_bytes
    none = config.load(ROOT / "configs/unet_1280.yaml", ["data.workers=0"])
    assert checks.shared_memory_bytes(none, 0) == 0
    short = checks.shared_memory({"unet_1280": settings, "other": none}, free_bytes=64 * 2**20)
    assert not short.is_good and "unet_1280" in short.text and "other" not in short.text
    assert checks.shared_memory({"unet_1280": settings}, free_bytes=2**40).is_good


def test_as_many_workers_read_as_shared_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config.load(ROOT / "configs/unet_1280.yaml")
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    for free_bytes, workers in ((64 * 2**20, 0), (10**9, 3), (10**12, 16)):
        monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=free_bytes))
        assert checks.fitting_workers(settings) == workers


def test_without_a_gpu_nothing_follows_unless_it_is_a_rehearsal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    check = checks.gpu(rehearsal=False)
    assert not check.is_good and check.is_needed and "REHEARSE=1" in check.text
    assert checks.gpu(rehearsal=True).is_good
    done = checks.list_all(ROOT, [ROOT / "configs/unet_seed.yaml"], rehearsal=False)
    assert [each.name for each in done] == ["machine", "packages", "GPU"]


# --- kinds of kernels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, kind",
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", kernels.CONVOLUTION),
        ("sm80_xmma_wgrad_implicit_gemm_indexed_bf16bf16_bf16f32_f32_nhwckrsc_nhwc", kernels.CONVOLUTION),
        ("void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816dgrad_optimized>", kernels.CONVOLUTION),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_NNT", kernels.MATMUL),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1", kernels.MATMUL),
        ("void cudnn::bn_fw_tr_1C11_kernel_NCHW<float, float, int, 512>", kernels.ELEMENTWISE),
        ("triton_poi_fused__to_copy_convolution_native_batch_norm_relu_3", kernels.ELEMENTWISE),
        ("triton_tem_fused_convolution_2", kernels.CONVOLUTION),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", kernels.ELEMENTWISE),
        ("void at::native::multi_tensor_apply_kernel<at::native::FusedAdamMathFunctor>", kernels.OPTIMIZER),
        ("void at::native::elementwise_kernel<direct_copy_kernel_cuda>", kernels.COPIES),
        ("Memcpy HtoD (Pinned -> Device)", kernels.COPIES),
        ("void cudnn::ops::nchwToNhwcKernel<float>", kernels.COPIES),
        ("void something_new<int>", kernels.OTHER),
        ("aten::mkldnn_convolution", kernels.CONVOLUTION),
        ("aten::addmm", kernels.MATMUL),
    ],
)
def test_kernels_are_known_by_their_names(name: str, kind: str) -> None:
    assert kernels.kind_of(name) == kind


def event(
    name: str, device: object, us: float = 0, parent: object = None, launched: tuple = ()
) -> types.SimpleNamespace:
    """An event of torch.profiler, as far as it is read."""
    return types.SimpleNamespace(
        name=name, device_type=device, is_user_annotation=name.startswith("Optimizer"), cpu_parent=parent,
        self_cpu_time_total=us, time_range=types.SimpleNamespace(elapsed_us=lambda: us),
        kernels=[types.SimpleNamespace(name=kernel, duration=duration) for kernel, duration in launched],
    )  # fmt: skip


def test_what_an_optimizer_starts_is_optimizer_on_a_gpu_and_on_a_cpu() -> None:
    gpu, cpu = kernels.DeviceType.CUDA, kernels.DeviceType.CPU
    step = event("Optimizer.step#Muon.step", cpu, 1)
    product = event("aten::mm", cpu, 20, step, launched=(("nvjet_hsh", 7.0),))
    other = event("aten::mm", cpu, 5, None, launched=(("nvjet_hsh", 3.0),))
    device = [event("nvjet_hsh", gpu, 7.0), event("nvjet_hsh", gpu, 3.0), event("Optimizer.step#Muon.step", gpu, 99)]
    us = kernels.sum_by_kind([step, product, other, *device], on_gpu=True)
    assert us[kernels.MATMUL] == 3 and us[kernels.OPTIMIZER] == 7 and sum(us.values()) == 10
    us = kernels.sum_by_kind([step, product, other], on_gpu=False)
    assert us[kernels.MATMUL] == 5 and us[kernels.OPTIMIZER] == 21


# --- into the docs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def docs(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "README.md", tmp_path)
    shutil.copy(ROOT / "docs/BENCHMARKS.md", tmp_path / "docs")
    return tmp_path


def everything() -> list[results.Row]:
    """Rows of all jobs, as they look on a GPU."""
    network = {"epochs": 5, "minutes": 3.3, "images_per_s": 106.2, "waited_fraction": 0.001, "val_dice": 0.99481}
    way = {"images_per_s": 106.2, "peak_memory_gb": 15.2, "peak_fraction": 0.61, "waited_fraction": 0.0,
           "ms_of_kind": {"convolution": 50.0, "optimizer": 10.0, "other": 0.0}}  # fmt: skip
    refined = {"network_eager": way, "network_compiled": way, "refiner_eager": {"error": "the memory is too small"},
               "refiner_compiled": way, "matrix_tflops": 790.0, "images": "real"}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        names = [path.stem for path in command.gpu_configs()]
    rows = [row("tests", passed=31), row("reference", images_per_s=100.0, reference_images_per_s=30.0, train_ratio=3.33,
            reference_float32_images_per_s=20.0, train_ratio_float32=5.0)]  # fmt: skip
    for name in names:
        figures = refined if name.endswith("_refined") else {k: v for k, v in refined.items() if "refiner" not in k}
        rows += [row(f"speed {name}", **figures), row(f"find-batch {name}", images=48, or_more=False)]
    for name in ("unet_seed", "unet_640", "unet_640_refined"):
        rows += [
            row(f"train {name}", network=network, images="real"),
            row(f"validate {name}", threshold=0.497, oof_dice_cross_fitted=0.99512, images=848, of="real"),
            row(f"score {name}", public=None, private=0.9950, images=800, images_per_s=150.0, of="real"),
            *(row(f"predict {size} {name}", images=15000, scale=2, seconds=100.0, images_per_s=181.0,
                  gpu_busy_fraction=0.97, of="real", was_resumed=False) for size in ("half", "full")),
        ]  # fmt: skip
    return rows


def write(path: pathlib.Path, rows: list[results.Row]) -> pathlib.Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def test_filled_docs_say_what_was_measured_by_what_on_what_and_when(docs: pathlib.Path) -> None:
    fill.main(write(docs / "rows.jsonl", everything()), docs)
    table = (docs / "docs/BENCHMARKS.md").read_text()
    label = "| `unet_seed.yaml`: training fold 0, reading and validation included | 3 min 30 s |"
    start = f"{label} **3 min 18 s** (106.2 images/s"
    (line,) = [each for each in table.splitlines() if each.startswith(start)]
    machine = "NVIDIA H100 80GB HBM3, torch 2.11.0, CUDA 13.0, driver 580.1"
    assert line.endswith(f" | `make it`, at 0123456 | {machine} | 2026-11-28 |")
    section = table.partition("## On a GPU")[2].partition("\n## ")[0]
    assert "not measured yet" not in section
    assert {len(each.split("|")) for each in section.splitlines() if each.startswith("|")} == {8}
    readme = (docs / "README.md").read_text()
    said = "[`unet_seed.yaml`](configs/unet_seed.yaml) **0.9951** in 3.3 minutes (H100, torch 2.11.0, 2026-11-28)."
    assert f"The configs for GPUs: {said}" in readme.splitlines()
    assert len(readme.split()) <= len((ROOT / "README.md").read_text().split())


def test_a_second_fill_replaces_the_first(docs: pathlib.Path) -> None:
    fill.main(write(docs / "rows.jsonl", everything()), docs)
    first = [(docs / name).read_text() for name in (fill.BENCHMARKS, fill.README)]
    others = json.loads(json.dumps(everything()).replace("106.2", "140.5").replace("0.99512", "0.99600"))
    fill.main(write(docs / "rows.jsonl", others), docs)
    second = [(docs / name).read_text() for name in (fill.BENCHMARKS, fill.README)]
    assert all("106.2" not in text and "0.9951*" not in text for text in second) and "140.5" in second[0]
    fill.main(write(docs / "rows.jsonl", everything()), docs)
    assert [(docs / name).read_text() for name in (fill.BENCHMARKS, fill.README)] == first


def refused(docs: pathlib.Path, rows: list[results.Row], match: str) -> None:
    before = [(docs / name).read_text() for name in (fill.BENCHMARKS, fill.README)]
    with pytest.raises(Problem, match=match):
        fill.main(write(docs / "rows.jsonl", rows), docs)
    assert [(docs / name).read_text() for name in (fill.BENCHMARKS, fill.README)] == before


def test_rows_of_a_rehearsal_are_refused(docs: pathlib.Path) -> None:
    refused(docs, [*everything(), row("tests", passed=1) | {"rehearsal": True}], "rows of a rehearsal")


def test_a_figure_that_the_docs_have_no_row_for_is_refused(docs: pathlib.Path) -> None:
    mine = row("find-batch mine", images=4, or_more=False)
    refused(docs, [*everything(), mine], "0 rows that begin with `mine.yaml`")
    refused(docs, [], "has no rows")
    readme = docs / "README.md"
    readme.write_text(readme.read_text().replace("The configs for GPUs", "Others"))
    refused(docs, everything(), "README.md has 0 lines")


def test_drawn_cars_and_failures_leave_the_docs_as_they_are(docs: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    before = [(docs / name).read_text() for name in (fill.BENCHMARKS, fill.README)]
    rows = [row("check GPU", is_good=True, text="x"), {"key": "tests", **FACTS, "error": "2 tests failed"}]
    rows += [row("score unet_seed", skipped="data has no test.zip"), row("train unet_seed", network={}, images="drawn")]
    rows += [row("validate unet_seed", of="drawn")]
    fill.main(write(docs / "rows.jsonl", rows), docs)
    assert [(docs / name).read_text() for name in (fill.BENCHMARKS, fill.README)] == before
    assert "tests failed (2 tests failed)" in capsys.readouterr().out


# --- what the jobs read ----------------------------------------------------------------------------------------------


def test_the_speed_that_predict_prints_is_read() -> None:
    printed = "Predicting 20 images ...\nsubmissions/a.csv.gz: 20 rows, 0.1 MB, 9.3 images/s.\nShards of ...\n"
    assert predict.steady_images_per_s(printed) == 9.3


def test_a_log_gives_the_speed_without_the_epoch_that_compiled(tmp_path: pathlib.Path) -> None:
    same = {"waited_fraction": 0.01, "seconds": 30, "device": "H100"}
    speeds = {20.0: None, 100.0: 0.98, 110.0: 0.99}
    rows = [{"images_per_s": speed, "val_dice": score, **same} for speed, score in speeds.items()]
    write(tmp_path / "log.jsonl", rows)
    figures = work.training_figures(tmp_path / "log.jsonl")
    assert (figures["images_per_s"], figures["minutes"], figures["val_dice"]) == (105.0, 1.5, 0.99)


def test_predictions_wait_for_a_training_that_is_whole(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    proof = make_proof(tmp_path)
    for job in (work.validate, work.score, work.predict_half, work.predict_full):
        with pytest.raises(work.Blocked, match="is not trained whole"):
            job(proof, work.Clock())


def test_images_are_the_competitions_where_they_are_fine_enough(
    demo_folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(work.config_speed, "draw", lambda kind, folder, cars: drawn.append(kind) or folder)
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "shrink.json").write_text('{"scale": 2}')
    proof = work.Proof(False, "proof", tmp_path, copy, ROOT / "configs/unet_seed.yaml", [])
    half, full, refined, rooms = (
        config.load(ROOT / f"configs/{name}.yaml") for name in ("unet_seed", "unet_1280", "unet_640_refined", "nyuv2")
    )
    assert proof.folder(half) == copy and proof.images(copy) == "real, a copy at 1/2"
    assert {proof.folder(each) for each in (full, refined)} == {tmp_path / "drawn_carvana"}
    assert proof.folder(rooms) == tmp_path / "drawn_nyuv2" and drawn == ["carvana", "carvana", "nyuv2"]
    whole = work.Proof(False, "proof", tmp_path, demo_folder, ROOT / "configs/unet_seed.yaml", [])
    assert whole.folder(full) == demo_folder and whole.images(demo_folder) == "real"


def test_a_rehearsal_and_measurements_do_not_share_a_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", [row("tests", passed=1)])
    args = argparse.Namespace(rehearse=1, out="rows.jsonl", data=None, config=command.TRAINED, piece=None)
    with pytest.raises(Problem, match="has measurements, and this is a rehearsal"):
        command.prove(args)


def test_a_new_file_of_rows_never_takes_over_a_trained_run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    proof, rehearsal = make_proof(tmp_path), make_proof(tmp_path, rehearsal=True)
    for each in (proof, rehearsal):
        command.start_over(each, tmp_path / "rows.jsonl")
    proof.run.folder.mkdir(parents=True)
    with pytest.raises(Problem, match="name another with OUT=, or delete the folder"):
        command.start_over(proof, tmp_path / "rows.jsonl")
    command.start_over(rehearsal, tmp_path / "rows.jsonl")
    assert not proof.run.folder.exists()  # both have the same name here
