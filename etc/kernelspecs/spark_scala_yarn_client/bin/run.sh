#!/usr/bin/env bash
# eg-payload-version: 2
# Starts the Toree launcher in a Spark driver on this host.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=etc/kernel-launchers/spark/options.sh
source "$here/bin/options.sh"

find_spark
impersonate
split_options "${SPARK_OPTS:-${__TOREE_SPARK_OPTS__-}}"
spark_opts=("${WORDS[@]}")
split_options "${TOREE_OPTS:-${__TOREE_OPTS__-}}"
toree_opts=("${WORDS[@]}")
split_options "${LAUNCH_OPTS-}"
launch_opts=("${WORDS[@]}")

assembly=("$here"/lib/toree-assembly-*.jar)
launcher=("$here"/lib/toree-launcher-*.jar)
[[ -f ${assembly[0]} && -f ${launcher[0]} ]] || fail "$here/lib lacks toree-assembly-*.jar or toree-launcher-*.jar"

command=("${AS_USER[@]}" "$SPARK_SUBMIT" "${spark_opts[@]}" --jars "${assembly[0]}" --class launcher.ToreeLauncher
    "${launcher[0]}" "${toree_opts[@]}" "${launch_opts[@]}" "$@")
if [[ -n ${EG_LAUNCH_SECRET-} ]]; then
    # A JVM cannot hide a variable from the cells it runs; standard input is read once.
    secret=$EG_LAUNCH_SECRET
    unset EG_LAUNCH_SECRET
    exec "${command[@]}" --launch-secret-on-stdin <<<"$secret"
fi
exec "${command[@]}" </dev/null
