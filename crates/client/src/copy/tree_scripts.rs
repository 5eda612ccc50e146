//! What the guest's shell does for the copy of a tree.

/// Makes the directory $1 where none is, and in it $2, where archives are unpacked. Says which tar there is, whether the
/// directory is new, and its absolute path; nothing if there is no tar or no place for $2.
pub(super) const BEGIN_UP: &str = r#"command -v tar >/dev/null && command -v find >/dev/null || exit 0
if [ -d "$1" ]; then new=there; else new=new; mkdir -p -- "$1" || exit; fi
cd -- "$1" || exit
mkdir -m 700 -- "$2" 2>/dev/null || exit 0
case $(tar --version 2>/dev/null) in *GNU*) echo gnu;; *) echo other;; esac
echo "$new"; pwd"#;

/// Unpacks the archive `a` in $1, with the options $3..., and puts what is in it in its place below $2.
///
/// What is not there yet is moved. A file that is there gets the content of the new one, as cp does it; a link takes the
/// place of what is no directory.
pub(super) const PUT: &str = r#"s=$1; t=$2; shift 2
cd -- "$s" && rm -rf t bad && mkdir t && tar -x -f a -C t "$@" && rm -f a || exit
find t -type d -exec sh -c '
to=$1; shift
put() { how=$1; shift; [ $# -eq 0 ] || $how -- "$@" "$g/" || : >bad; }
no() { echo "$1" >&2; : >bad; }
for d; do
[ -d "$d" ] || continue
g=$to${d#t}
set --
for f in "$d"/* "$d"/.[!.]* "$d"/..?*; do
[ -e "$f" ] || [ -L "$f" ] || continue
n=$g/${f##*/}
if [ -e "$n" ] || [ -L "$n" ]; then
[ -L "$f" ] || continue
if [ -d "$n" ] && [ ! -L "$n" ]; then no "$n is a directory, and gives no way to a link"; rm -f -- "$f"; continue; fi
fi
set -- "$@" "$f"
[ $# -lt 200 ] || { put "mv -f" "$@"; set --; }
done
put "mv -f" "$@"; set --
for f in "$d"/* "$d"/.[!.]* "$d"/..?*; do
[ -e "$f" ] && [ ! -L "$f" ] || continue
n=$g/${f##*/}
if [ -d "$f" ]; then [ -d "$n" ] || { no "$n is there and is no directory"; rm -rf -- "$f"; }; continue; fi
if [ -f "$n" ]; then set -- "$@" "$f"; else no "$n is there and is no file"; continue; fi
[ $# -lt 200 ] || { put cp "$@"; set --; }
done
put cp "$@"
done' sh "$t" {} + && rm -rf t && [ ! -e bad ]"#;

/// Removes a directory in which archives were made or unpacked.
pub(super) const END: &str = r#"rm -rf -- "$1""#;

/// Tells which of $2... are not there below $1, by their places.
pub(super) const MISSING: &str = r#"cd -- "$1" || exit
shift; i=0
for n; do i=$((i + 1)); [ -e "$n" ] || [ -L "$n" ] || echo "$i"; done"#;

/// Gives directories below $1 their permissions less the umask: pairs of mode and name.
pub(super) const MODES: &str = r#"cd -- "$1" || exit
shift; u=$(umask)
while [ $# -gt 1 ]; do chmod "$(printf %o $((0$1 & ~0$u)))" "$2" || exit; shift 2; done"#;

/// Tells the sums of the files $2... below $1 that are there.
pub(super) const SUMS: &str = r#"cd -- "$1" || exit 0
shift; sha256sum -- "$@" 2>/dev/null; :"#;

/// Makes a directory $1 for archives in the first place that takes one, and says which tar there is and where the
/// directory is; not both if there is no tar or no place.
pub(super) const BEGIN_DOWN: &str = r#"command -v tar >/dev/null || exit 0
case $(tar --version 2>/dev/null) in *GNU*) echo gnu;; *) echo other;; esac
for d in /tmp /var/tmp /run /dev/shm; do mkdir -m 700 "$d/$1" 2>/dev/null && { printf %s "$d/$1"; exit; }; done
exit 0"#;

/// Makes the archive `a` in $1 of files below $2: those that the list `n` names, or $4... . Says what tar
/// complains of, and nothing only if it is content: then the archive is whole.
pub(super) const PACK: &str = r#"s=$1; t=$2; how=$3; shift 3
rm -f "$s/a"
if [ "$how" = gnu ]; then
tar -c -f "$s/a" -C "$t" --format=gnu --no-recursion --hard-dereference --null -T "$s/n" 2>"$s/e"
else tar -c -f "$s/a" -C "$t" "$@" 2>"$s/e"; fi
c=$?
head -c 2000 "$s/e" || exit
[ "$c" -eq 0 ] || echo "tar: exit code $c""#;
