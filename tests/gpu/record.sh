#!/usr/bin/env bash
# All that needs a GPU and TensorRT, in one go: what is checked, then what is measured, each with a time limit.
#   tests/gpu/record.sh OUT_DIR [PYTHON] [check|time|one]
# OUT_DIR/record.txt is what was printed, with the card's name; session folders lie in OUT_DIR/sessions.
# Wants nsys, ncu and compute-sanitizer on PATH; what is missing is said and left out.
set -uo pipefail
out=${1:?usage: record.sh OUT_DIR [PYTHON] [check|time|one]} python=${2:-python3} phase=${3:-all}
here=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$out/sessions"
export PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH}
cd "$here"
log=$(realpath "$out")/record.txt
sessions=$(realpath "$out")/sessions
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT

probe() { "$python" -P -c 'import sys; from probes.cli import main; main()' "$@"; }
step() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 began=$SECONDS; shift 2
    { echo "== $name"; timeout --foreground "$limit" "$@" 2>&1; echo "== $name: exit $?, $((SECONDS - began)) s"; } >"$work/$name.txt"
    cat "$work/$name.txt" >>"$log"
    grep "^== $name: exit" "$work/$name.txt"
}
export -f probe; export python

export PROBE_TACTIC_SOURCES=${PROBE_TACTIC_SOURCES:-}
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader >"$log"
"$python" -c 'import tensorrt; print("TensorRT", tensorrt.__version__)' >>"$log" 2>&1
"$python" examples/gpu/plugin_fault.py "$work/plugin_fault.onnx" >>"$log"
"$python" - "$work" >>"$log" <<'Q'
import sys; from pathlib import Path
from harness import bert
here = Path(sys.argv[1])
small = bert.BertConfig(768, 4, 12, 3072, vocab_size=1000)
bert.save(bert.build_onnx(small, bert.random_weights(small), layer_norm="fused"), here / "encoder.onnx")
print("encoder.onnx: 4 layers of 768")
Q

encoder() { # NAME
    step "$1" 200 bash -c "probe profile $work/encoder.onnx --backend trt --precision fp16 --shapes input_ids:1x128 --nsys --ncu --trtexec --out $sessions/$1"
}

# What may share the card: these do not look at the clock.
check() {
encoder encoder_check &
step engine 240 "$python" -m pytest -q --tb=short -m gpu -p no:cacheprovider tests/gpu/test_gpu_engine.py &
step tools 200 "$python" -m pytest -q -m gpu -p no:cacheprovider tests/gpu/test_gpu_tools.py &
step device_log 200 "$python" -m pytest -q -m gpu -p no:cacheprovider tests/gpu/test_gpu_device_log.py &
step plugin_fault 260 bash -c "probe sanitize $work/plugin_fault.onnx --backend trt --precision fp16 --inputs $work/plugin_fault.npz --out $sessions/plugin_fault" &
for kind in out_of_bounds race uninitialised divergent_barrier; do
    step "planted_$kind" 200 bash -c "probe sanitize --tool all --out $sessions/$kind -- $python examples/gpu/layers.py $kind" &
done
for tool in memcheck racecheck initcheck synccheck; do
    step "kernels_$tool" 200 compute-sanitizer --tool "$tool" --print-limit 5 \
        "$python" -P -c 'import sys; from probes.cli import main; main()' kernels test --out "$sessions/kernels-$tool" &
done
wait
}

# One after another.
timed() {
step overhead 200 "$python" -m benchmarks.engine_overhead --precision fp16 --nsys
encoder encoder
step rows 60 "$python" -m benchmarks.rows
step device_log_speed 120 "$python" benchmarks/device_log.py --only gpu
}

case $phase in
    check) check ;;
    time) timed ;;
    one) encoder encoder ;; # the profile of one model alone
    *) check; timed ;;
esac
