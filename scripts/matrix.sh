#!/usr/bin/env bash
# Test against other versions of diffusers: `make matrix`, or `bash scripts/matrix.sh 0.36.0 0.39.0`.
# Each gets a small environment on top of .venv (PyTorch is not installed again), in .matrix/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
versions=("$@")
[ ${#versions[@]} -gt 0 ] || versions=(0.36.0 0.39.0 0.42.1)
below=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
failed=()
for version in "${versions[@]}"; do
    place=.matrix/$version
    if [ ! -e "$place/.installed" ]; then
        .venv/bin/python -m venv "$place"
        own=$("$place/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
        # Files of this kind are not read in folders that another one names: so the sources, too.
        printf "%s\n" "$below" "$PWD/src" >"$own/below.pth"
        # Pipelines before 0.37 import names that transformers 5 no longer has.
        older=(); [ "$(printf "%s\n" "$version" 0.37 | sort -V | head -1)" = 0.37 ] || older=("transformers<5")
        "$place/bin/python" -m pip install -q --disable-pip-version-check "diffusers==$version" "${older[@]}"
        touch "$place/.installed"
    fi
    "$place/bin/python" -c 'import diffusers, transformers; print("diffusers", diffusers.__version__, "transformers", transformers.__version__)'
    # Warnings of an older version are its own. What touches diffusers: loading, saving, pipelines, adapters, roles, calibration,
    # components, the command line's use of pipelines.
    "$place/bin/python" -m pytest -q -W default tests/artifact tests/calibrate tests/models \
        tests/recipes/test_components.py tests/methods/test_token_sinks.py tests/cli/test_text_to_image.py -m "not slow" || failed+=("$version")
done
[ ${#failed[@]} -eq 0 ] || { echo "failed with diffusers ${failed[*]}" >&2; exit 1; }
echo "passed with diffusers ${versions[*]}"
