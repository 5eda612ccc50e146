//! What the guest's shell does for a copy to it. The scripts use what every POSIX guest has, be it a small one; what goes
//! beyond that is tried, and has another way behind it.

/// Tells which file it is that stands under a name.
pub(super) const INODE: &str = r#"inode() { set -f; set -- $(ls -di -- "$1" 2>/dev/null); [ -n "$1" ] && echo "$1"; }
# KiB that are free where a file is.
free() { df -Pk -- "$1" 2>/dev/null | tail -n 1 | { read -r a b c d e; echo "${d:-x}"; }; }
kib() { du -k -- "$1" 2>/dev/null | { read -r a b; echo "${a:-0}"; }; }
"#;

/// Looks at the destination $1 and makes the partial file, $2 in the same directory, or tells the size and sum of the one
/// that is there if $4 says so. What somebody else put there is not used: a link could lead anywhere.
///
/// What is gone on with is copied first, under the name $3: another copy may be writing to the file that is there, and
/// goes on doing so without a name until it notices. Where there is no room for that nothing is changed.
///
/// The first line says how the copy is written: to a `partial` file, whose inode, size and sum follow; `direct` to the
/// file that is there, since its directory takes no other one (as in `/proc`); to a `block` device; or `through` a FIFO or
/// another device. What comes after that is the path at which the links end.
pub(super) const PREPARE: &str = r#"nl='
'
f=$1
if [ -d "$f" ]; then echo "it is a directory" >&2; exit 1; fi
if [ -S "$f" ]; then echo "it is a socket" >&2; exit 1; fi
if [ -b "$f" ]; then printf 'block\n%s' "$f"; exit; fi
if [ -e "$f" ] && [ ! -f "$f" ]; then printf 'through\n%s' "$f"; exit; fi
if [ -L "$f" ]; then
f=$(readlink -f -- "$f" && echo x) && [ "$f" != "${nl}x" ] && [ "$f" != x ] ||
{ echo "it is a link that leads to no place for a file" >&2; exit 1; }
f=${f%"${nl}x"}
fi
case $f in */*) d=${f%/*}/;; *) d=./;; esac
[ -d "$d" ] || { echo "${d%/}: No such file or directory" >&2; exit 1; }
p=$d$2; o=$d$3
umask 077; set -C
if [ "$4" = resume ] && [ -f "$p" ] && [ ! -L "$p" ] && [ -O "$p" ]; then
trap 'rm -f -- "$o"; exit 1' TERM
free=$(free "$d")
{ ! [ "$free" -le "$(kib "$p")" ]; } 2>/dev/null && cp -- "$p" "$o" || { rm -f -- "$o"
echo "No space left on device for a copy of the half file, with which a resumed copy begins" >&2; exit 1; }
echo partial; inode "$o" && wc -c <"$o" && sha256sum <"$o" && mv -f -- "$o" "$p" || { rm -f -- "$o"; exit 1; }
printf %s "$f"; exit; fi
rm -f -- "$o" "$p" 2>/dev/null
if e=$( { : >"$o"; } 2>&1 ); then
[ "$o" = "$p" ] || mv -f -- "$o" "$p" || exit
echo partial; inode "$p" || exit; printf '0\n-\n%s' "$f"; exit; fi
case $e in *[Ss]pace*|*uota*) ;; *) [ -f "$f" ] && [ -w "$f" ] && { printf 'direct\n%s' "$f"; exit; };; esac
echo "$e" >&2; exit 1"#;

/// Says whether the partial file $1 is still the file $2. If so, it was that as well when it was opened before: a file
/// that has lost the name never gets it back.
pub(super) const CHECK: &str =
    r#"[ "$(inode "$1")" = "$2" ] || { echo "another copy to the same file is at work" >&2; exit 1; }"#;

/// What the scripts say when another copy has taken the name of the partial file.
pub(super) const OVERTAKEN: &str = "another copy to the same file is at work";

/// Makes the partial file $1 the file $2, a new one with the permissions $3 less the umask; but only if it is the file $4
/// and has $5 bytes: another copy may have put its own half file there.
///
/// A file that is there keeps what it has beside its content. The partial file takes its place if it can be given all of
/// that; if not, or if the file has other names, the content is copied into it.
pub(super) const COMPLETE: &str = r#"[ "$(inode "$1")" = "$4" ] && [ "$(wc -c <"$1")" -eq "$5" ] ||
{ echo "another copy to the same file is at work" >&2; exit 1; }
if [ -d "$2" ]; then echo "it is a directory" >&2; exit 1; fi
if [ -f "$2" ] && [ ! -L "$2" ]; then
has() { stat -c '%u %g %a %C' -- "$1" 2>/dev/null; }
if { [ "$(stat -c %h -- "$2")" = 1 ] && cp --attributes-only --preserve=mode,ownership,xattr -- "$2" "$1" &&
[ "$(has "$1")" = "$(has "$2")" ] && [ "$(wc -c <"$1")" -eq "$5" ] && mv -f -- "$1" "$2"; } 2>/dev/null; then exit; fi
free=$(free "$2")
if [ "$((free + $(kib "$2")))" -lt "$(kib "$1")" ] 2>/dev/null; then
echo "No space left on device for a second copy, from which a file that is there is written" >&2; exit 1; fi
[ "$(wc -c <"$1")" -eq "$5" ] || { echo "the half file has another size now, and is not used" >&2; exit 1; }
cp --sparse=always -- "$1" "$2" 2>/dev/null || cp -- "$1" "$2" || exit
rm -f -- "$1"; exit
fi
m=$(printf %o $((0${3:-666} & ~0$(umask))))
chmod "$m" "$1" && mv -f -- "$1" "$2""#;

/// Removes the partial file $1 if it is the file $2.
pub(super) const REMOVE: &str = r#"[ "$(inode "$1")" != "$2" ] || rm -f -- "$1""#;

/// Copies its input to the file $1.
pub(super) const THROUGH: &str = r#"exec cat >"$1""#;
