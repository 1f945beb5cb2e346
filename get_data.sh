#!/usr/bin/env bash
# Fills data/. What each file is, where it comes from and on which terms: data/README.md.
set -euo pipefail
unset CDPATH
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
self="./${BASH_SOURCE[0]##*/}"

tool=                 # curl or wget, whichever is here
aside=data/.downloads # downloads and unpacked archives stay here until they are whole
archives=https://data.neuralnoise.com
l2x_files=(reviews.aspect{0..3}.{train,heldout}.txt annotations.json review+wiki.filtered.200.txt)
mnist_mirrors=(https://ossci-datasets.s3.amazonaws.com/mnist https://storage.googleapis.com/cvdf-datasets/mnist)
mnist_checksums='
440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609  train-images-idx3-ubyte.gz
3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c  train-labels-idx1-ubyte.gz
8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6  t10k-images-idx3-ubyte.gz
f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6  t10k-labels-idx1-ubyte.gz
'
mnist_files=({train,t10k}-{images-idx3,labels-idx1}-ubyte.gz)
knapsack_bases=(https://raw.githubusercontent.com/PredOpt/predopt-benchmarks/{1a8e048,HEAD}/Knapsack/Trainer)
knapsack_checksums='
7b512a53d6568af4a5c9b4d600086dc7acf49903d67bd434a05ce55bd828e07e  Data.npz
'
nri_files_10=({data,edges}_{train,valid,test}_novar_1skip_10t_1r_graph10.npy)
nri_files_20=({data,edges}_{train,valid,test}_novar_1skip_20t_1r_graph10.npy)

usage() {
    cat <<'HELP'
usage: ./get_data.sh [l2x] [vae] [nri] [sample] [nri-released] [knapsack]

Without a word: l2x, vae and nri. Files that are there already are kept.

  l2x           BeerAdvocate reviews and word vectors, the authors' archive   -> data/
  vae           MNIST from its public mirrors                                 -> data/mnist/
  nri           graph layouts with T=10 and T=20, simulated here, no network  -> data/
  sample        small stand-ins for all three, made here, no network          -> data/sample/
  nri-released  the authors' own graph layouts, the same names as nri's       -> data/released/
  knapsack      energy prices of a benchmark of decisions                     -> data/knapsack/

Downloads need curl or wget. One that broke off goes on where it stopped the next time.

Environment:
  DATA_MIRROR   base URLs, separated by spaces, tried in order instead of the usual servers
                (DATA_MIRROR=http://host/files is asked for http://host/files/l2x-data.tar.gz)
  PYTHON        the Python that makes data; otherwise .venv/bin/python if it is there, else python3
HELP
}

say() { printf '%s\n' "$*" >&2; }

die() {
    say "get_data.sh: $*"
    exit 1
}

has() { command -v "$1" >/dev/null; }

# Is every one of FILE... in FOLDER, and not empty?
there() { # FOLDER FILE...
    local folder=$1 file
    shift
    for file in "$@"; do
        [[ -s $folder/$file ]] || return 1
    done
}

# -- downloads -------------------------------------------------------------------------------------

# fetch_with_*: adds to PART what it lacks of URL. 0: done, 1: broke off, 2: refused, 3: cannot be resumed.

fetch_with_curl() { # URL PART
    local code rc=0 progress=(--silent --show-error)
    [[ ! -t 2 ]] || progress=(--progress-bar)
    code=$(curl "${progress[@]}" --fail --location --connect-timeout 20 --speed-limit 1 --speed-time 60 \
        --continue-at - --output "$2" --write-out '%{http_code}' "$1") || rc=$?
    case $rc/$code in
        0/*) return 0 ;;
        33/* | 22/416) return 3 ;;
        22/4*) return 2 ;;
        *) return 1 ;;
    esac
}

fetch_with_wget() { # URL PART
    local rc=0 progress=(--no-verbose)
    [[ ! -t 2 ]] || progress=(--quiet --show-progress)
    wget "${progress[@]}" --tries=1 --timeout=60 --continue --output-document="$2" "$1" || rc=$?
    case $rc in
        0) return 0 ;;
        8) return 2 ;; # an error code from the server
        *) return 1 ;;
    esac
}

# Has FILE the given sha256? Without one: is it a whole gzip file?
intact() { # FILE SHA256
    local found
    if [[ -z $2 ]]; then
        gzip -t <"$1" 2>/dev/null
        return
    elif has sha256sum; then
        found=$(sha256sum <"$1")
    elif has shasum; then
        found=$(shasum -a 256 <"$1")
    else
        die "neither sha256sum nor shasum is here, so downloads cannot be checked: install one"
    fi
    [[ ${found%% *} == "$2" ]]
}

# Completes PART from URL, checked; what the server sends is thrown away when it is wrong.
complete() { # URL PART SHA256
    local url=$1 part=$2 attempt resumed rc
    for attempt in 1 2 3; do
        resumed=no rc=0
        [[ ! -e $part ]] || resumed=yes
        "fetch_with_$tool" "$url" "$part" || rc=$?
        [[ -s $part ]] || rm -f -- "$part"
        case $rc in
            0)
                if [[ -e $part ]] && intact "$part" "$3"; then return 0; fi
                rm -f -- "$part"
                say "$url: $([[ -n $3 ]] && echo 'wrong sha256' || echo 'not a whole gzip file'); removed what it sent"
                [[ $resumed == yes ]] || return 1 # else the older part may be at fault: once more from the start
                ;;
            1)
                say "$url: no answer, or it broke off (attempt $attempt of 3)"
                [[ $attempt == 3 ]] || sleep "$attempt"
                ;;
            2)
                say "$url: the server does not give it"
                return 1
                ;;
            3) rm -f -- "$part" ;;
        esac
    done
    return 1
}

# Leaves NAME, whole and checked, in $aside, from the first base URL that has it.
download() { # NAME SHA256 BASE...
    local name=$1 sha=$2 base bases tried=
    shift 2
    bases=("$@")
    [[ -z ${DATA_MIRROR:-} ]] || read -ra bases <<<"$DATA_MIRROR"
    mkdir -p "$aside"
    [[ ! -e $aside/$name ]] || return 0
    if has curl; then tool=curl; elif has wget; then tool=wget; else die "install curl or wget: neither is here"; fi
    for base in "${bases[@]}"; do
        tried+=" ${base%/}/$name"
        say "downloading ${base%/}/$name"
        if complete "${base%/}/$name" "$aside/$name.part" "$sha"; then
            mv -- "$aside/$name.part" "$aside/$name"
            return 0
        fi
    done
    die "could not download $name (tried$tried): run this again later, or set DATA_MIRROR (--help)"
}

# The first file called NAME anywhere in FOLDER, or nothing.
find_inside() { # FOLDER NAME
    find "$1" -type f -size +0c -name "$2" | LC_ALL=C sort | sed -n 1p
}

# Moves FILE... from wherever they are in the archive into FOLDER, all or none.
unpack() { # ARCHIVE FOLDER FILE...
    local archive=$1 folder=$2 unpacked=$1.unpacked names file missing=
    shift 2
    if ! names=$(tar -tzf "$archive" 2>/dev/null) || [[ -z $names ]]; then
        rm -f -- "$archive"
        die "${archive##*/} is not a tar archive; removed"
    elif grep -Eq '^/|(^|/)\.\.(/|$)' <<<"$names"; then
        rm -f -- "$archive"
        die "${archive##*/} holds a path that leads outside its folder; nothing was unpacked, and it was removed"
    fi
    rm -rf -- "$unpacked"
    mkdir -- "$unpacked"
    if ! tar -xozf "$archive" -C "$unpacked"; then
        rm -rf -- "$unpacked"
        die "could not unpack $archive: see the line above; if it is not the disk, delete the archive and run this again"
    fi
    for file in "$@"; do
        [[ -n $(find_inside "$unpacked" "$file") ]] || missing+=" $file"
    done
    if [[ -n $missing ]]; then
        rm -rf -- "$unpacked"
        die "$archive lacks:$missing; nothing was moved into $folder (delete the archive to download it again)"
    fi
    mkdir -p "$folder"
    for file in "$@"; do
        [[ -s $folder/$file ]] || mv -- "$(find_inside "$unpacked" "$file")" "$folder/$file"
    done
    rm -rf -- "$unpacked" "$archive"
}

# Removes $aside unless something waits in it.
tidy() { [[ ! -d $aside ]] || rmdir "$aside" 2>/dev/null || true; }

# -- data made here --------------------------------------------------------------------------------

run_module() { # MODULE ARGUMENT...
    local python=${PYTHON:-}
    if [[ -z $python ]]; then
        python=python3
        [[ ! -x .venv/bin/python ]] || python=.venv/bin/python
    fi
    has "$python" || die "$python is not here: set PYTHON to a Python with the packages of requirements.txt"
    # one thread: these programs gain nothing from more, and lose much where other jobs want the cores too
    OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" "$python" -m "$@" || die "failed: $python -m $*"
}

# -- tasks -----------------------------------------------------------------------------------------

get_l2x() {
    there data "${l2x_files[@]}" && return
    say "BeerAdvocate: its owner asked that the set not be redistributed; use it only if its terms allow you to."
    download l2x-data.tar.gz "" "$archives"
    unpack "$aside/l2x-data.tar.gz" data "${l2x_files[@]}"
}

# Downloads the files of CHECKSUMS, lines of a sha256 and a name, that are not in FOLDER yet.
get_files() { # FOLDER CHECKSUMS BASE...
    local folder=$1 checksums=$2 sha file
    shift 2
    while read -r sha file; do
        [[ -n $file && ! -s $folder/$file ]] || continue
        download "$file" "$sha" "$@"
        mkdir -p "$folder"
        mv -- "$aside/$file" "$folder/$file"
    done <<<"$checksums"
}

get_vae() { get_files data/mnist "$mnist_checksums" "${mnist_mirrors[@]}"; }

get_knapsack() { get_files data/knapsack "$knapsack_checksums" "${knapsack_bases[@]}"; }

get_nri() {
    there data "${nri_files_10[@]}" || run_module aaai23.nri.simulate --timesteps 10 --output data
    there data "${nri_files_20[@]}" || run_module aaai23.nri.simulate --timesteps 20 --output data
}

get_nri_released() {
    there data/released "${nri_files_10[@]}" "${nri_files_20[@]}" && return
    download sst-data.tar.gz "" "$archives"
    unpack "$aside/sst-data.tar.gz" data/released "${nri_files_10[@]}" "${nri_files_20[@]}"
}

get_sample() {
    there data/sample "${l2x_files[@]}" || run_module aaai23.l2x.sample --output data/sample
    there data/sample/mnist "${mnist_files[@]}" || run_module aaai23.dvae.sample --output data/sample/mnist
    there data/sample "${nri_files_10[@]}" ||
        run_module aaai23.nri.simulate --timesteps 10 --samples 1000 200 200 --output data/sample --sample
}

main() {
    local word failed=
    for word in "$@"; do
        case $word in
            l2x | vae | nri | nri-released | sample | knapsack) ;;
            -h | --help) usage && exit ;;
            *) say "get_data.sh: unknown word '$word': use l2x, vae, nri, sample, nri-released or knapsack (--help)" && exit 2 ;;
        esac
    done
    [[ $# -gt 0 ]] || set -- l2x vae nri
    if [[ $# == 1 ]]; then
        trap tidy EXIT
        "get_${1//-/_}"
        say "$1: done"
        return
    fi
    for word in "$@"; do # each in a shell of its own: a server that is down does not keep the others' data away
        "$BASH" "$self" "$word" || failed+=" $word"
    done
    [[ -z $failed ]] || die "not complete:$failed (the lines above say why)"
}

main "$@"
