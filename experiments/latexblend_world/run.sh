#!/usr/bin/env bash
# Six held-out subjects, ten prompts, four seeds; then a pair. About ten minutes on two CPU cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
banks=()
for subject in rex:dog mittens:cat pip:bird clover:rabbit bolt:robot herbie:car; do
    name=${subject%:*}
    python train.py +experiment=concept_dog name="suite_$name" concept="$name" class_noun="${subject#*:}" \
        data.instance_dir="world/subjects/$name" '~callbacks.samples' "$@"
    banks+=("bank.$name=$(ls -t outputs/train/suite_"$name"/*/exports/"$name".safetensors | head -n 1)")
done
python eval.py "${banks[@]}" name=suite
python eval.py protocol=pairs "${banks[@]:0:2}" name=suite_pairs
