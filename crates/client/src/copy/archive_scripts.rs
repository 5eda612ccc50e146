//! What the guest's shell does for a copy that keeps everything.

/// Looks at the path $1 that is copied to, makes a directory of the name $2 on the same file system, in which the archive
/// is unpacked, and says which tar there is and where that directory is.
///
/// It is made beside what is copied to, or in it where that is a directory: both are where there must be room anyway.
pub(super) const BEGIN_UP: &str = r#"command -v tar >/dev/null || { echo "the guest has no tar, which keeps what -a asks for" >&2; exit 1; }
d=$1
if [ ! -d "$d" ]; then case $d in */*) d=${d%/*}; d=${d:-/};; *) d=.;; esac; fi
[ -d "$d" ] || { echo "$d: No such file or directory" >&2; exit 1; }
cd -- "$d" || exit
mkdir -m 700 -- "$2" "$2/t" || exit
case $(tar --version 2>/dev/null) in *GNU*) echo gnu;; *) echo other;; esac
printf %s "$(pwd)/$2"; echo x"#;

/// Unpacks the archive that comes in $1/t, with the options $2... .
pub(super) const UNPACK: &str = r#"cd -- "$1/t" || exit
shift; LC_ALL=C; export LC_ALL
exec tar -x -f - "$@""#;

/// Puts what was unpacked in the directory $1 in its place $2: all of it, or if $3 is not empty the one thing of this name.
///
/// Links that are there below a directory are never followed, since another user may have laid them.
pub(super) const PUT: &str = r#"cd -- "$1" || exit
f=./t${3:+/$3}
[ -e "$f" ] || [ -L "$f" ] || { echo "the archive came without it" >&2; exit 1; }
case $2 in /*) g=$2;; *) g=./$2;; esac
LC_ALL=C; export LC_ALL
if [ -d "$g" ]; then
[ -d "$f" ] && [ ! -L "$f" ] || { echo "it is a directory" >&2; exit 1; }
o=--remove-destination; cp --remove-destination -- /dev/null ./q 2>/dev/null || o=-f
cp -a "$o" "$f/." "$g/" || exit
# What goes from a directory changes its time.
n=${1##*/}
for r in /run /tmp; do
touch -r "$f" "$r/$n" 2>/dev/null || continue
rm -rf -- "$1"; touch -r "$r/$n" "$2"; rm -f "$r/$n"; break
done
elif [ -e "$g" ] || [ -L "$g" ]; then cp -a -- "$f" "$g"
else mv -- "$f" "$g"; fi"#;

/// Says which tar there is, whether $1 is a directory ("tree") or something else ("one"), how many KiB are in it, and
/// makes a directory $2 for the pieces of an archive in the first place that takes one.
pub(super) const BEGIN_DOWN: &str = r#"command -v tar >/dev/null || { echo "the guest has no tar, which keeps what -a asks for" >&2; exit 1; }
case $1 in
*/) [ -d "$1" ] || { echo "$1: Not a directory" >&2; exit 1; }; k=tree;;
*) [ -e "$1" ] || [ -L "$1" ] || { echo "$1: No such file or directory" >&2; exit 1; }
k=one; [ -L "$1" ] || [ ! -d "$1" ] || k=tree;;
esac
case $(tar --version 2>/dev/null) in
*GNU*) g=gnu; b=$(du -sk -- "$1" 2>/dev/null) || :;;
# Packs holes as zeros.
*) g=other; b=$(find "$1" -type f -exec stat -c %s {} + | { n=0; while read -r s; do n=$((n + s)); done; echo $((n / 1024)); });;
esac
for d in /tmp /var/tmp /run /dev/shm; do
mkdir -m 700 "$d/$2" 2>/dev/null && { echo "$g $k ${b%%[!0-9]*}"; printf %s "$d/$2"; exit; }
done
echo "no directory takes the pieces of an archive: /tmp, /var/tmp, /run, /dev/shm" >&2; exit 1"#;

/// Makes an archive of $3 in the directory $2 and hands it out in pieces: each is the file `p` in $1 until the host empties
/// it. So an archive of any size takes the room of two pieces. A host that is silent for $5 rounds is gone. $4 says which
/// tar there is.
///
/// Says at the end what tar complains of, and its exit code in the last line.
pub(super) const PACK: &str = r#"cd -- "$1" || exit
b=$1; rounds=$5; LC_ALL=C; export LC_ALL
{ cd -- "$2" && if [ "$4" = gnu ]; then
tar -c -f - --format=posix --sparse --xattrs --xattrs-include='*' --acls --numeric-owner --no-unquote -- "$3"
else tar -c -f - -- "$3"; fi 2>"$b/e"; echo $? >"$b/c"; } | {
while [ -d "$b" ]; do
dd bs=65536 count=128 iflag=fullblock of=q 2>/dev/null
[ -s q ] && mv q p || break
n=0
while [ -s p ]; do
n=$((n + 1)); [ "$n" -lt "$rounds" ] || { rm -rf -- "$b"; exit; }
sleep 0.05 || { sleep 1; n=$((n + 19)); }
done
done
}
head -c 65536 e; echo; cat c"#;
