#!/usr/bin/env bash
# Calibrate a GPU on a machine without a network. README.txt beside this file says how; ./lab.sh help lists the stages.
# A stage that has ended is not run again, and one that was killed or ran out of time continues where it was.
set -u

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
work=${LAB_WORK:-$here/work}
results=${OUT:-$PWD}/lab-results.tar.gz
limit_bytes=$((16 * 1024 * 1024))
device=cuda stage_s=540 call_s=0 restore=
models=() quick=() wanted=()
began=$SECONDS

parts="base-decode lora-decode prefill loads backends loads-rest eager"

usage() {
	cat <<-END
		usage: lab.sh [OPTION...] [STAGE... | pack [MODEL] | help]

		  --device cuda|cpu      what is timed (cuda)
		  --model NAME           a base model; repeatable (llama-3.1-8b, then qwen2.5-7b)
		  --quick                the small grid, to try things out
		  --stage-seconds N      a stage stops by itself after N seconds, and continues at the next call (540)
		  --call-seconds N       no stage runs longer than N seconds after this call began (no limit)
		  --restore FILE         before all else: take up the samples of a packed archive, on a new machine of the same kind

		Stages are named MODEL/PART. Without a stage, all run, in this order:
		$(stages | sed 's/^/  /')
		Environment: PYTHON (python3) has torch; LAB_WORK ($here/work) holds the samples; results go to OUT (this folder).
		Exit codes: 0 all is timed; 1 something is left, call again; 2 wrong usage; 3 a stage failed: its reason is printed.
	END
}

# What a fit needs comes first, of every model; what only compares comes last.
stages() {
	local part model
	for model in "${models[@]}"; do
		for part in base-decode lora-decode prefill loads; do echo "$model/$part"; done
	done
	for part in backends loads-rest eager; do
		for model in "${models[@]}"; do echo "$model/$part"; done
	done
}

say() { echo "lab: $*"; }

fail() {
	say "error: $1" >&2
	exit "$2"
}

# The packages of the Python that has torch, which may itself be a virtual environment, and those of the kit.
install() {
	if [ -e "$work/venv/.installed" ]; then return; fi
	say "installing into $work/venv"
	rm -rf "$work/venv"
	"$python" -m venv --without-pip --system-site-packages "$work/venv" || fail "$python can't make a virtual environment" 3
	"$python" -c 'import site, sys, sysconfig; print("\n".join([sysconfig.get_path("purelib"), *(p for p in sys.path if p.endswith("-packages"))]))' \
		>"$("$work/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages_of_the_lab.pth"
	"$work/venv/bin/python" -c 'import pip' 2>/dev/null || "$work/venv/bin/python" -m ensurepip >/dev/null ||
		fail "$python has no pip" 3
	"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-index --no-compile \
		--find-links "$here/wheels" 'loraplan[gpu]' || fail "pip could not install from $here/wheels: see above" 3
	"$work/venv/bin/python" -c 'import platform, torch; print("python", platform.python_version(), "torch", torch.__version__, "cuda", torch.version.cuda)' >>"$work/facts.txt"
	"$work/venv/bin/loraplan" --version >>"$work/facts.txt"
	touch "$work/venv/.installed"
}

# What the machine is and how its clocks stand now, in full; every samples' manifest has the most important of it.
facts() {
	{
		date -u
		uname -srm
		if [ "$device" = cuda ]; then
			nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu --format=csv
			nvidia-smi -q -d CLOCK,POWER,PERFORMANCE
		fi
	} >>"$work/facts.txt" 2>&1
}

# Seconds that a stage may take: its own limit, or what is left of the call's.
allowed() {
	local left=$stage_s
	if [ "$call_s" -gt 0 ]; then
		local of_call=$((call_s - (SECONDS - began)))
		if [ "$of_call" -lt "$left" ]; then left=$of_call; fi
	fi
	echo "$left"
}

run_stage() {
	local stage=$1 model=${1%/*} part=${1##*/} seconds code what
	local marker="$work/$model/$part.done" log="$work/$model/$part.log"
	if [ -e "$marker" ]; then
		say "$stage: done before"
		return
	fi
	seconds=$(allowed)
	if [ "$seconds" -lt "$least_s" ]; then
		say "$stage: no time left in this call"
		left+=("$stage")
		return
	fi
	case $part in
	loads) what=(loads whole) ;;
	loads-rest) what=(loads concurrent stages) ;;
	*) what=(steps "$part") ;;
	esac
	mkdir -p "$work/$model"
	say "$stage: up to $seconds s, $(date -u +%H:%M:%S)"
	# It ends by itself at --within; timeout is for one that hangs. In the background, so that a signal ends it at once.
	timeout --foreground --kill-after=10 $((seconds + 45)) "$work/venv/bin/loraplan" calibrate "${what[@]}" --model "$model" --device "$device" \
		"${quick[@]}" --within "${seconds}s" --out "$work/$model" >"$log" 2>&1 &
	running=$!
	wait $running
	code=$?
	running=
	case $code in
	0)
		touch "$marker"
		say "$stage: done"
		;;
	1)
		left+=("$stage")
		say "$stage: out of time; continues at the next call"
		;;
	*)
		failed+=("$stage")
		if [ $code = 124 ] || [ $code = 137 ]; then echo "did not end in time, and was killed" >>"$log"; fi
		say "$stage: FAILED (exit code $code): $(grep -v '^$' "$log" | tail -n 1)"
		;;
	esac
}

# Whether a model's profile is newer than its samples.
fitted() { [ "$1/profile.json" -nt "$1/steps.parquet" ] && [ "$1/profile.json" -nt "$1/loads.parquet" ]; }

# Samples and profiles; a finished suite needs no steps.jsonl beside its steps.parquet.
pack() {
	local model names=("$@")
	mkdir -p "$(dirname "$results")" || fail "can't write $results" 3
	for model in "${names[@]}"; do
		if [ -e "$work/$model/steps.parquet" ] && [ -e "$work/$model/loads.parquet" ] && ! fitted "$work/$model"; then
			if "$work/venv/bin/loraplan" calibrate fit "$work/$model" --out "$work/$model/profile.json" >"$work/$model/fit.log" 2>&1; then
				say "$model: fitted $work/$model/profile.json"
			else
				say "$model: no profile yet: $(tail -n 1 "$work/$model/fit.log")"
			fi
		fi
	done
	for omit in finished all; do
		"$work/venv/bin/python" - "$work" "$results" "$omit" "${names[@]}" <<-'END' || fail "can't write $results" 3
			import json, sys, tarfile
			from pathlib import Path

			work, results, omit, *models = sys.argv[1:]
			files = [Path(work, "facts.txt")]
			for model in models:
			    for file in sorted(Path(work, model).glob("*.*")):
			        table, manifest = file.with_suffix(".parquet"), file.with_suffix(".json")
			        if file.suffix == ".jsonl" and table.exists():
			            if omit == "all" or json.loads(manifest.read_text()).get("status") == "finished":
			                continue
			        files.append(file)
			with tarfile.open(results + ".part", "w:gz") as archive:
			    for file in files:
			        if file.is_file():
			            archive.add(file, file.relative_to(work))
			Path(results + ".part").replace(results)
		END
		if [ "$(stat -c %s "$results")" -le $limit_bytes ]; then
			say "packed $results ($(($(stat -c %s "$results") / 1024)) KiB)"
			return
		fi
		say "$results is above 16 MiB: packing without the logs of unfinished suites, which a new machine could not continue"
	done
	fail "$results is above 16 MiB; pack one model at a time: lab.sh pack MODEL" 3
}

while [ $# -gt 0 ]; do
	case $1 in
	--device | --model | --stage-seconds | --call-seconds | --restore)
		[ $# -ge 2 ] || fail "$1 needs a value" 2
		case $1 in
		--device) device=$2 ;;
		--model) models+=("$2") ;;
		--stage-seconds) stage_s=$2 ;;
		--call-seconds) call_s=$2 ;;
		--restore) restore=$2 ;;
		esac
		shift
		;;
	--quick) quick=(--quick) ;;
	-h | --help) wanted=(help) ;;
	-*) fail "unknown option $1; ./lab.sh help lists them" 2 ;;
	*) wanted+=("$1") ;;
	esac
	shift
done
case "$stage_s$call_s" in *[!0-9]*) fail "--stage-seconds and --call-seconds take whole seconds" 2 ;; esac
if [ ${#models[@]} = 0 ]; then models=(llama-3.1-8b qwen2.5-7b); fi
least_s=20
if [ "$stage_s" -lt $least_s ]; then least_s=$stage_s; fi

if [ "${wanted[0]:-}" = help ]; then
	usage
	exit
fi
if [ ${#wanted[@]} = 0 ]; then mapfile -t wanted < <(stages); fi
if [ "${wanted[0]}" != pack ]; then
	for stage in "${wanted[@]}"; do
		stages | grep -qxF -- "$stage" || fail "unknown stage $stage; ./lab.sh help lists them" 2
	done
fi
mkdir -p "$work" && : >>"$work/.lock" || fail "can't write to $work: set LAB_WORK to a folder" 3
if command -v flock >/dev/null; then # a stage that outlives a killed lab.sh holds it too
	exec 9>>"$work/.lock"
	flock --timeout 20 9 || fail "another lab.sh is at work in $work" 2
fi
running=
stop() {
	if [ -n "$running" ]; then kill -TERM "$running" && wait "$running"; fi
	say "interrupted; samples are kept, call lab.sh again" >&2
	exit 130
}
trap stop INT TERM HUP
if [ -n "$restore" ]; then
	"$python" -m tarfile -e "$restore" "$work" || fail "can't unpack $restore" 3
	say "took up the samples of $restore"
fi
install
if [ "${wanted[0]}" = pack ]; then
	if [ ${#wanted[@]} -gt 1 ]; then pack "${wanted[@]:1}"; else pack "${models[@]}"; fi
	exit
fi
facts
left=() failed=()
for stage in "${wanted[@]}"; do run_stage "$stage"; done
pack "${models[@]}"
if [ ${#failed[@]} -gt 0 ]; then fail "failed: ${failed[*]}; logs are in $work" 3; fi
if [ ${#left[@]} -gt 0 ]; then
	say "left: ${left[*]}; call lab.sh again"
	exit 1
fi
say "all is timed; bring back $results"
