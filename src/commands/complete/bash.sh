# bash makes three words of `vm1:/etc` and of `--cpus=2`, and replaces the last one alone.
_aq_complete() {
    local line=${COMP_LINE:0:COMP_POINT} words=() piece i
    for ((i = 0; i <= COMP_CWORD; i++)); do
        piece=${line#"${line%%[![:space:]]*}"}
        if ((i > 0)) && [[ -n $line && $piece == "$line" ]]; then
            # Nothing is between it and the one before.
            ((i < COMP_CWORD)) && piece=${COMP_WORDS[i]}
            words[${#words[@]} - 1]+=$piece
        else
            ((i < COMP_CWORD)) && line=$piece piece=${COMP_WORDS[i]}
            words+=("$piece")
        fi
        line=${line#"$piece"}
    done
    local IFS=$'\013' word=${words[${#words[@]} - 1]}
    COMPREPLY=($(COMPLETE=bash _CLAP_IFS="$IFS" _CLAP_COMPLETE_INDEX=$((${#words[@]} - 1)) \
        _CLAP_COMPLETE_COMP_TYPE="$COMP_TYPE" _CLAP_COMPLETE_SPACE=false aq -- "${words[@]}"))
    local breaks=${COMP_WORDBREAKS//[^=:]/}
    if [[ -n $breaks && $word == *["$breaks"]* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*["$breaks"]}"}"}")
    fi
    if [[ ${COMPREPLY-} != *[=/:] ]]; then compopt +o nospace; fi
}
complete -o nospace -o bashdefault -F _aq_complete aq
