"""The files of launch/ that a cluster reads: their keys, and what has to hold for a run to be resumed."""

import json
import pathlib
import re

import jsonschema
import pytest
import yaml

ROOT = pathlib.Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
SCHEMAS = pathlib.Path(__file__).parent / "fixtures" / "launch"
JOBSETS = ("jobset-tpu.yaml", "jobset-gpu.yaml")
AGAIN = 42  # preempted and saved
NEVER_AGAIN = (0, 1, 2)


def read(name: str):
    return yaml.safe_load((LAUNCH / name).read_text())


def job_of(name: str) -> dict:
    [job] = read(name)["spec"]["replicatedJobs"]
    return job["template"]["spec"]


def container_of(name: str) -> dict:
    [container] = job_of(name)["template"]["spec"]["containers"]
    return container


@pytest.mark.parametrize(("name", "schema"), [*((name, "jobset") for name in JOBSETS), ("sky.yaml", "sky")])
def test_a_file_has_the_keys_and_types_of_its_schema(name, schema):
    wanted = json.loads((SCHEMAS / f"{schema}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(wanted)
    jsonschema.validate(read(name), wanted)


def test_a_misspelt_key_is_found():
    wrong = read("jobset-tpu.yaml")
    wrong["spec"]["replicatedJobs"][0]["template"]["spec"]["backofLimit"] = 0
    with pytest.raises(jsonschema.ValidationError, match="backofLimit"):
        jsonschema.validate(wrong, json.loads((SCHEMAS / "jobset.schema.json").read_text()))


@pytest.mark.parametrize("name", JOBSETS)
def test_a_jobset_starts_again_for_all_but_what_would_come_again(name):
    whole, job = read(name)["spec"], job_of(name)
    assert job["parallelism"] == job["completions"]
    assert whole["failurePolicy"]["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {"containerName": "main", "operator": "In", "values": [1, 2]}


@pytest.mark.parametrize("name", JOBSETS)
def test_a_jobset_runs_main_in_a_workdir_of_its_name(name):
    container = container_of(name)
    assert container["command"][:3] == ["python", "-m", "cwps_jax.main"]
    workdir = next(part for part in container["args"] if part.startswith("--workdir="))
    assert workdir.endswith("/" + read(name)["metadata"]["name"])
    folders = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert workdir.removeprefix("--workdir=").rsplit("/", 1)[0] in folders
    config = next(part for part in container["args"] if part.startswith("--config="))
    assert (ROOT / config.removeprefix("--config=")).is_file()


def test_the_tpu_jobset_lets_jax_find_the_cluster_on_the_hosts_network():
    pod = job_of("jobset-tpu.yaml")["template"]["spec"]
    assert pod["hostNetwork"] and pod["dnsPolicy"] == "ClusterFirstWithHostNet"
    assert "--distributed" in container_of("jobset-tpu.yaml")["command"]
    chips = container_of("jobset-tpu.yaml")["resources"]["limits"]["google.com/tpu"]
    sides = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    assert chips * job_of("jobset-tpu.yaml")["parallelism"] == int(sides[0]) * int(sides[1])


def test_the_gpu_jobset_tells_every_process_where_the_first_one_is():
    jobset = read("jobset-gpu.yaml")
    [job] = jobset["spec"]["replicatedJobs"]
    name, container = jobset["metadata"]["name"], container_of("jobset-gpu.yaml")
    port = container["ports"][0]["containerPort"]
    assert f"--coordinator={name}-{job['name']}-0-0.{name}:{port}" in container["args"]
    assert f"--processes={job['replicas'] * job_of('jobset-gpu.yaml')['completions']}" in container["args"]
    assert "--process=$(JOB_COMPLETION_INDEX)" in container["args"]
    assert [variable["name"] for variable in container["env"]] == ["JOB_COMPLETION_INDEX"]


def test_skypilot_starts_again_what_saved_and_not_what_would_come_again():
    task = read("sky.yaml")
    codes = task["resources"]["job_recovery"]["recover_on_exit_codes"]
    assert AGAIN in codes
    assert not {*NEVER_AGAIN, 137} & set(codes)  # 137 is its own
    assert set(re.findall(r"\$\{?([A-Z_]+)", task["run"])) - task["envs"].keys() == {
        "SKYPILOT_NODE_IPS",
        "SKYPILOT_NODE_RANK",
        "SKYPILOT_NUM_NODES",
    }


def test_slurm_warns_every_process_in_time_and_gives_each_a_gpu_of_its_own():
    text = (LAUNCH / "slurm.sbatch").read_text()
    directives = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in text.splitlines()
        if line.startswith("#SBATCH ")
    )
    assert directives["signal"] == "TERM@120"
    assert {"requeue", "open-mode"} <= directives.keys() and directives["open-mode"] == "append"
    assert directives["ntasks-per-node"] == directives["gpus-per-node"]
    assert not [key for key in directives if key.startswith("gpus-per-task")]


def test_the_image_copies_what_there_is_and_gives_signals_to_python():
    text = (LAUNCH / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    assert json.loads(re.search(r"^CMD (.*)$", text, re.MULTILINE)[1])[:3] == [
        "python",
        "-m",
        "cwps_jax.main",
    ]
    extras = (ROOT / "pyproject.toml").read_text()
    assert all(f"\n{extra} = " in extras for extra in ("demo", "tpu", "cuda"))
