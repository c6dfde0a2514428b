#!/bin/bash
# Verifies a journal of hsm-signer with jq, sha256sum and openssl alone (audit.md, "By hand"). Run it in
# STATE_DIR, or better in a copy of it, in bash with GNU or BusyBox tools:
#   CA_CERT_FILE=ca.crt bash verify-journal.sh [SEQ:SHA256 ...]    each head is one that a witness kept
#   bash verify-journal.sh head < metrics                          the head that /metrics shows
# Checkpoints: CHECKPOINT_PUBLIC_KEY_FILE names your own copy of their public key, and MAX_UNVOUCHED how
# many seconds the end may be uncovered (7200).
set -euo pipefail

# The head in a scrape of /metrics, or in one instant of Prometheus.
head_of() {
  seq='' sum=''
  while read -r name value; do
    case $name in
      hsm_signer_journal_head_seq*) seq=$(printf %.0f "$value") ;;
      hsm_signer_journal_head_sha256*) sum=$sum$(printf %08x "$(printf %.0f "$value")") ;; # eight words, in order
    esac
  done
  echo "$seq:$sum"
}

if [ "${1:-}" = head ]; then
  head_of
  exit
fi

work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
cat journal-*.jsonl > "$work/all"

# The chain: each line has its number and the hash of the line before. Prints the head.
(
  prev=$(printf '%064d' 0)
  n=0
  while IFS= read -r line; do
    n=$((n + 1))
    seq=${line#'{"seq":'}; seq=${seq%%,*}
    said=${line#*'"prev":"'}; said=${said%%'"'*}
    if [ "$seq" != "$n" ] || [ "$said" != "$prev" ]; then
      echo "line $n does not follow the one before"
      exit 1
    fi
    prev=$(printf '%s\n' "$line" | sha256sum | cut -d ' ' -f 1)
  done < "$work/all"
  echo "$n lines, chain whole, head $n:$prev"
)

# The certificates: each is signed by the CA, has its line's serial number, and holds its intent's bytes.
(
  signed=0
  while IFS=$'\t' read -r serial certificate; do
    printf %s "$certificate" | base64 -d > "$work/cert.der"
    openssl x509 -inform DER -in "$work/cert.der" -out "$work/cert.pem"
    openssl verify -partial_chain -no_check_time -trusted "$CA_CERT_FILE" "$work/cert.pem" > "$work/said" || { cat "$work/said"; exit 1; }
    [ "$(openssl x509 -in "$work/cert.pem" -noout -serial)" = "serial=$serial" ] || { echo "$serial is not its serial number"; exit 1; }
    header=$(openssl asn1parse -inform DER -in "$work/cert.der" | sed -n '1s/.*hl= *\([0-9]*\).*/\1/p')
    openssl asn1parse -inform DER -in "$work/cert.der" -strparse "$header" -noout -out "$work/signed.der"
    jq -r --arg serial "$serial" 'select(.kind == "intent" and .serial == $serial) | .tbs' "$work/all" | base64 -d > "$work/intent.der"
    cmp "$work/signed.der" "$work/intent.der" || { echo "$serial is not what its intent says"; exit 1; }
    signed=$((signed + 1))
  done < <(jq -r 'select(.kind == "signed") | [.serial, .certificate] | @tsv' "$work/all")
  echo "$signed certificates signed by the CA, each of the bytes of its intent"
)

# The names: each intent has the names and the serial number of its to-be-signed certificate, which
# gets an empty signature so that openssl can read it.
as_certificate() {
  body=$(base64 -d | od -An -v -tx1 | tr -d ' \n')300506032b6570030100
  printf "$(printf '3082%04x%s' $((${#body} / 2)) "$body" | sed 's/../\\x&/g')"
}
(
  intents=0
  while IFS=$'\t' read -r seq serial names tbs; do
    printf %s "$tbs" | as_certificate > "$work/tbs.der"
    [ "$(openssl x509 -inform DER -in "$work/tbs.der" -noout -serial)" = "serial=$serial" ] || { echo "line $seq: $serial is not its serial number"; exit 1; }
    {
      openssl x509 -inform DER -in "$work/tbs.der" -noout -subject -nameopt sep_multiline,sname,utf8 | sed -n 's/^    *street=/    STREET=/; s/^    *\([A-Za-z0-9.]*=\)/\1/p'
      openssl x509 -inform DER -in "$work/tbs.der" -noout -ext subjectAltName 2> /dev/null | sed -n 's/, /\n/g; s/^  *//; s/IP Address:/IP:/g; /^\(DNS\|IP\|URI\|email\):/p'
    } | sort > "$work/certified"
    printf %s "$names" | base64 -d | sed '/^$/d' | sort > "$work/said"
    cmp -s "$work/said" "$work/certified" || { echo "line $seq: the names are not those of the to-be-signed certificate:"; diff "$work/said" "$work/certified" || true; exit 1; }
    intents=$((intents + 1))
  done < <(jq -r '
    def ip: if contains(":") then split("::") | map(split(":"))
      | if length == 2 then .[0] + [range(8 - (.[0] | length) - (.[1] | length)) | "0"] + .[1] else .[0] end
      | join(":") | ascii_upcase else . end;
    def plain: if test("^[A-Za-z0-9.]+=\".*\"$") then capture("^(?<type>[^=]+)=(?<value>.*)$") | .type + "=" + (.value | fromjson)
      elif startswith("IP:") then "IP:" + (.[3:] | ip) else . end;
    select(.kind == "intent") | [.seq, .serial, (.names // [] | map(plain) | join("\n") | @base64), .tbs] | @tsv' "$work/all")
  echo "$intents intents say what their to-be-signed certificates say"
)

# Nothing twice: no serial number, and no request except those with "anew". Every request is
# remembered; earlier builds could issue a second certificate to one whose certificate had expired
# more than thirty days before.
(
  jq -r 'select(.kind == "intent") | .serial' "$work/all" | sort | uniq -d > "$work/twice"
  jq -r 'select(.kind == "intent" and .anew != true) | .uid' "$work/all" | sort | uniq -d >> "$work/twice"
  jq -r 'select(.kind == "signed") | .serial' "$work/all" | sort | uniq -d >> "$work/twice"
  if [ -s "$work/twice" ]; then cat "$work/twice"; exit 1; fi
  echo "nothing twice"
)

# Whether a line with that number and hash is in the journal.
is_there() {
  [ "$(sed -n "${1%%:*}p" "$work/all" | sha256sum | cut -d ' ' -f 1)" = "${1#*:}" ] || { echo "$1 is not in the journal"; return 1; }
}

for head in "$@"; do
  is_there "$head"
  echo "$head is in the journal"
done

# The checkpoints: each is a signature over four lines of text.
(
  if [ -z "${CHECKPOINT_PUBLIC_KEY_FILE:-}" ]; then echo "nothing vouches for the chain: no key for checkpoints"; exit 0; fi
  id=$(head -n 1 "$work/all" | jq -r .journal)
  vouched=0
  while IFS=$'\t' read -r line seq sum algorithm signature; do
    printf 'hsm-signer checkpoint\njournal %s\nline %d\nsha256 %s\n' "$id" "$seq" "$sum" > "$work/text"
    printf %s "$signature" | base64 -d > "$work/signature"
    case $algorithm in
      Ed25519) openssl pkeyutl -verify -pubin -inkey "$CHECKPOINT_PUBLIC_KEY_FILE" -rawin -in "$work/text" -sigfile "$work/signature" > "$work/said" 2>&1 ;;
      *) openssl dgst "-sha${algorithm//[!0-9]/}" -verify "$CHECKPOINT_PUBLIC_KEY_FILE" -signature "$work/signature" "$work/text" > "$work/said" 2>&1 ;;
    esac || { echo "line $line: the checkpoint's signature is not by the key"; exit 1; }
    is_there "$seq:$sum" || exit 1
    if [ "$seq" -gt "$vouched" ]; then vouched=$seq; fi
  done < <(jq -r 'select(.kind == "checkpoint") | [.seq, .headSeq, .headSHA256, .algorithm, .signature] | @tsv' "$work/all")
  [ "$vouched" -gt 0 ] || { echo "no checkpoint covers any line"; exit 1; }
  behind=$(jq --argjson seq "$vouched" 'select(.seq > $seq and .kind != "checkpoint") | .seq' "$work/all" | wc -l)
  age=$(jq --argjson seq "$vouched" 'select(.seq == $seq) | now - (.time | sub("[.][0-9]+Z$"; "Z") | fromdate) | floor' "$work/all")
  if [ "$behind" -gt 0 ] && [ "$age" -gt "${MAX_UNVOUCHED:-7200}" ]; then
    echo "no checkpoint covers the last $behind lines, for $age seconds"
    exit 1
  fi
  echo "checkpoints vouch for all up to line $vouched, $behind lines follow"
)

# Who got what, and the kinds of lines.
jq -r 'select(.kind == "intent") | [.time, .requester.username, .rule, .serial, (.names // [] | join(" "))] | @tsv' "$work/all"
jq -r .kind "$work/all" | sort | uniq -c
