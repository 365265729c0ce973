# shellcheck shell=bash
# Sourced by the run.sh of Spark kernelspecs. Option lists (SPARK_OPTS, LAUNCH_OPTS, TOREE_OPTS) are single strings,
# parts of which come from clients. They are split here as plain data: nothing is ever passed to `eval`.

fail() {
    printf '%s: %s\n' "$0" "$1" >&2
    exit 1
}

# split_options TEXT - fill the array WORDS with the options of TEXT, as a shell would split them.
#
# Quotes and backslashes work as in a shell. ${NAME} and ${NAME:-default} (no braces within the default) are replaced
# by the environment's value, which is one piece of its word whatever it holds, except that a variable whose name ends
# in _OPTS is itself a list of options: unquoted, it is split in turn, without replacing anything in it. Nothing else
# is special: neither other uses of $, nor backquotes, ; & | < > ( ) * ? # ~.
split_options() {
    local LC_ALL=C
    WORDS=()
    _split "$1" replace
}

_split() {
    local text=$1 mode=$2 word='' started='' quote='' value
    local bare=$'^[^ \t\r\n\'"\\\\$]+' in_single="^[^']+" in_double='^[^"\\$]+'
    local variable='^\$\{([A-Za-z_][A-Za-z0-9_]*)(:-([^{}]*))?\}'
    while [[ -n $text ]]; do
        if [[ $quote == "'" && $text =~ $in_single || $quote == '"' && $text =~ $in_double ||
            -z $quote && $text =~ $bare ]]; then
            word+=${BASH_REMATCH[0]} started=yes text=${text:${#BASH_REMATCH[0]}}
            continue
        fi
        if [[ $mode == replace && $quote != "'" && $text =~ $variable ]]; then
            text=${text:${#BASH_REMATCH[0]}}
            _look_up "${BASH_REMATCH[1]}" "${BASH_REMATCH[3]}"
            if [[ -z $quote && ${BASH_REMATCH[1]} == *_OPTS ]]; then
                [[ -z $started ]] || WORDS+=("$word")
                word='' started=''
                _split "$value" keep
            elif [[ -n $value ]]; then
                word+=$value started=yes
            fi
            continue
        fi
        case $quote${text:0:1} in
        "''" | '""') quote='' ;;
        "'" | '"') quote=${text:0:1} started=yes ;;
        [$' \t\r\n'])
            [[ -z $started ]] || WORDS+=("$word")
            word='' started=''
            ;;
        \\ | '"'\\)
            if [[ -z $quote || ${text:1:1} == ['"\$`'] ]]; then
                text=${text:1}
            fi
            word+=${text:0:1} started=yes
            ;;
        *) word+=${text:0:1} started=yes ;;
        esac
        text=${text:1}
    done
    [[ -z $quote ]] || fail "an option list has a quote $quote without its other half"
    [[ -z $started ]] || WORDS+=("$word")
}

# Set `value` to the variable's value, or to the default if it is unset or empty.
_look_up() {
    [[ $1 != EG_LAUNCH_SECRET ]] || fail 'EG_LAUNCH_SECRET must not become an argument'
    value=${!1-}
    value=${value:-$2}
}

# impersonate - fill the array AS_USER with the command that runs the kernel as KERNEL_USERNAME, if that is required.
impersonate() {
    AS_USER=()
    [[ ${EG_IMPERSONATION_ENABLED-} == True ]] || return 0
    local user=${KERNEL_USERNAME:-UNSPECIFIED}
    # sudo interprets "#0" as a uid, and a leading dash as an option.
    [[ $user =~ ^[A-Za-z_][A-Za-z0-9_.@-]*$ ]] || fail 'KERNEL_USERNAME is not the name of a user'
    AS_USER=(sudo "PATH=$PATH" -H -E -u "$user")
}

# find_spark - set SPARK_SUBMIT.
find_spark() {
    [[ -n ${SPARK_HOME-} ]] || fail 'SPARK_HOME must be set to the location of a Spark distribution'
    SPARK_SUBMIT=$SPARK_HOME/bin/spark-submit
    [[ -x $SPARK_SUBMIT ]] || fail "$SPARK_SUBMIT is not there or not executable"
}
