#!/usr/bin/env bash
# eg-payload-version: 2
# Starts the R launcher in a Spark driver on this host.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=etc/kernel-launchers/spark/options.sh
source "$here/bin/options.sh"

find_spark
impersonate
split_options "${SPARK_OPTS-}"
spark_opts=("${WORDS[@]}")
split_options "${LAUNCH_OPTS-}"
launch_opts=("${WORDS[@]}")

exec "${AS_USER[@]}" "$SPARK_SUBMIT" "${spark_opts[@]}" "$here/scripts/launch_IRkernel.R" "${launch_opts[@]}" "$@"
