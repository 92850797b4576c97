#!/usr/bin/env bash
# Everything that wants an NVIDIA GPU, in stages of under 8 minutes, without a network:
#
#   benchmarks/gpu_all.sh DATA WHEELS [STAGE...]
#
# DATA holds nerf_synthetic/lego (52 MiB), WHEELS what of constraints.txt the machine's Python lacks, by
#   pip download -c constraints.txt --only-binary=:all: --no-deps --python-version 3.12 -d WHEELS tyro imageio ...
# (torch comes with the machine; imageio-ffmpeg, 64 MiB, is only for films). Without STAGE all run that have not
# succeeded before, and one that fails does not stop the others; a stage that is named runs again.
# Results: benchmarks/results/<GPU>/.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ $# -lt 2 ]; then
  sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit 2
fi
data=$(realpath "$1") wheels=$(realpath "$2")
shift 2
venv=$PWD/.gpu-venv
results=$PWD/benchmarks/results/$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1 | tr ' /' '__')
mkdir -p "$results"
export POLYFIELD_DATA=$data PATH=$venv/bin:$PATH
lego=$data/nerf_synthetic/lego
stages=(install doctor tests sanitizer step lego10 lego60 lego300 agree)

install() {
  python3 -m venv --system-site-packages "$venv" &&
    python -m pip install --no-index --no-deps "$wheels"/*.whl &&
    python -m pip install --no-index --no-deps --no-build-isolation .
}
doctor() { polyfield doctor && polyfield doctor --json >"$results/doctor.json"; }
tests() { python -m pytest -q -m 'not slow' tests/fields; } # on every device there is
sanitizer() { # memory, races and barriers, by NVIDIA's own tool, over one launch or more of every kernel
  local tool
  for tool in memcheck racecheck synccheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 1 python tests/helpers/every_kernel.py cuda || return 1
  done
}
step() { python benchmarks/gpu_step.py >"$results/gpu_step.json"; }
train_lego() { # seconds
  rm -rf "$results/lego$1"
  polyfield train "$lego" --device cuda --max-seconds "$1" --out "$results/lego$1" &&
    rm -f "$results/lego$1"/checkpoint.safetensors
}
lego10() { train_lego 10; }
lego60() { train_lego 60; }
lego300() { train_lego 300; }
agree() { # a model trained here, on both devices: PSNR within 0.05 dB
  local device
  for device in cpu cuda; do
    polyfield eval "$results/lego60" "$lego" --device $device --images 3 --json >"$results/agree_$device.json" || return 1
  done
  python - "$results" <<'EOF'
import json, pathlib, sys
cpu, cuda = (json.loads((pathlib.Path(sys.argv[1]) / f"agree_{d}.json").read_text()) for d in ("cpu", "cuda"))
print("PSNR on CPU", cpu["psnr"], "on CUDA", cuda["psnr"], "seconds a frame", cuda["seconds_per_frame"])
sys.exit(abs(cpu["psnr"] - cuda["psnr"]) > 0.05)
EOF
}

failed=()
for stage in "${@:-${stages[@]}}"; do
  done="$results/.done-$stage"
  [ $# -eq 0 ] && [ -e "$done" ] && continue
  printf '\n=== %s\n' "$stage"
  export -f "$stage" train_lego
  began=$SECONDS
  if data=$data wheels=$wheels venv=$venv results=$results lego=$lego timeout 8m bash -c "$stage" 2>&1 | tee "$results/$stage.log"; then
    touch "$done"
  else
    failed+=("$stage")
  fi
  printf '=== %s: %d s\n' "$stage" $((SECONDS - began))
done
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
