// Verifies, in this browser, that an entry stands in the log that a checkpoint commits to. Nothing is asked of the server but the
// proof, the entry's bytes and the notes by which the log's key was exchanged; the log's key is the one that the person entered, and
// what is shown afterwards are the bytes that were verified. RFC 6962 hashing, C2SP signed-note, tlog-proof.
"use strict";

const text = new TextEncoder();
const STORED_KEY = "sealrig-log-key"; // the key that last verified an entry of this server
const HANDOVER = "sealrig.dev/log-key/v1";
const MAX_HANDOVERS = 1000;

function bytes(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

function join(...parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let place = 0;
  for (const part of parts) {
    whole.set(part, place);
    place += part.length;
  }
  return whole;
}

async function sha256(data) {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", data));
}

function same(a, b) {
  return a.length === b.length && a.every((value, index) => value === b[index]);
}

function hex(data) {
  return Array.from(data, (value) => value.toString(16).padStart(2, "0")).join("");
}

function parseKey(vkey) {
  const match = /^([^+\s]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/]+=*)$/.exec(vkey.trim());
  if (!match) throw new Error("that is not a log key (name+hash+base64)");
  const key = bytes(match[3]);
  if (key[0] !== 1 || key.length !== 33) throw new Error("the log key is not Ed25519");
  return { name: match[1], hash: match[2], key: key.slice(1) };
}

function parseProof(proof) {
  const cut = proof.indexOf("\n\n");
  if (cut < 0) throw new Error("the proof has no checkpoint");
  const lines = proof.slice(0, cut).split("\n");
  if (lines.shift() !== "c2sp.org/tlog-proof@v1") throw new Error("the proof is of an unknown version");
  if (lines[0].startsWith("extra ")) lines.shift();
  const index = /^index (0|[1-9][0-9]*)$/.exec(lines.shift());
  if (!index) throw new Error("the proof names no index");
  return { index: BigInt(index[1]), hashes: lines.map(bytes), note: proof.slice(cut + 2) };
}

function splitNote(note) {
  const cut = note.lastIndexOf("\n\n");
  const body = note.slice(0, cut + 1);
  const signatures = note.slice(cut + 2).split("\n").filter(Boolean).map((line) => {
    const match = /^— (\S+) (\S+)$/.exec(line);
    if (!match) throw new Error("a signature line cannot be read");
    return { name: match[1], data: bytes(match[2]) };
  });
  return { body, signatures };
}

function parseNote(raw) {
  const note = splitNote(raw);
  const [origin, size, root] = note.body.split("\n");
  return { ...note, origin, size: BigInt(size), root: bytes(root) };
}

async function isSigned(note, vkey) {
  const key = await crypto.subtle.importKey("raw", vkey.key, { name: "Ed25519" }, false, ["verify"]);
  for (const signature of note.signatures) {
    if (signature.name !== vkey.name || hex(signature.data.slice(0, 4)) !== vkey.hash) continue;
    if (await crypto.subtle.verify({ name: "Ed25519" }, key, signature.data.slice(4), text.encode(note.body))) return true;
  }
  return false;
}

// Returns the log's size and new key of the note by which the entered key handed over, if it signed one.
async function findHandover(vkey) {
  for (let number = 1; number <= MAX_HANDOVERS; number += 1) {
    const answer = await fetch(`/log/keys/${number}`, { credentials: "same-origin" });
    if (!answer.ok) return null;
    const note = splitNote(await answer.text());
    const [header, origin, size, next] = note.body.split("\n");
    const entered = `${vkey.name}+${vkey.hash}+`;
    if (header !== HANDOVER || origin !== vkey.name || next.startsWith(entered)) continue;
    if (await isSigned(note, vkey)) return { size, next };
  }
  return null;
}

async function checkSignature(note, vkey) {
  if (await isSigned(note, vkey)) return;
  const handover = await findHandover(vkey);
  if (!handover) throw new Error("no signature by the key you entered");
  throw new Error(
    `the key you entered is older than this checkpoint: it handed the log over at ${handover.size} entries, and signed that, to ` +
      `${handover.next}; enter that key to go on`,
  );
}

async function rootFrom(leaf, index, size, hashes) {
  if (index >= size) throw new Error("the entry is outside the tree");
  let node = index;
  let last = size - 1n;
  let hash = await sha256(join(Uint8Array.of(0), leaf));
  for (const other of hashes) {
    if (last === 0n) throw new Error("the proof is too long");
    if (node % 2n === 1n || node === last) {
      hash = await sha256(join(Uint8Array.of(1), other, hash));
      while (node % 2n === 0n && node !== 0n) {
        node /= 2n;
        last /= 2n;
      }
    } else {
      hash = await sha256(join(Uint8Array.of(1), hash, other));
    }
    node /= 2n;
    last /= 2n;
  }
  if (last !== 0n) throw new Error("the proof is too short");
  return hash;
}

async function load(address) {
  const answer = await fetch(address, { credentials: "same-origin" });
  if (!answer.ok) throw new Error(`${address} answered ${answer.status}`);
  return new Uint8Array(await answer.arrayBuffer());
}

// Shows each step in the list. Returns the entry's bytes where every step held, and null otherwise.
async function verify(form, list) {
  list.replaceChildren();
  const step = async (name, work) => {
    const line = document.createElement("li");
    try {
      const detail = await work();
      line.className = "good";
      line.textContent = detail ? `${name}: ${detail}` : name;
    } catch (problem) {
      line.className = "bad";
      line.textContent = `${name}: ${problem.message}`;
      throw problem;
    } finally {
      list.append(line);
    }
  };
  let vkey;
  let proof;
  let note;
  let leaf;
  try {
    await step("The log key can be read", () => {
      vkey = parseKey(form.elements.vkey.value);
      return vkey.name;
    });
    await step("Proof and entry are here", async () => {
      leaf = await load(form.dataset.leaf);
      proof = parseProof(new TextDecoder().decode(await load(form.dataset.proof)));
      note = parseNote(proof.note);
      return `entry ${proof.index}, ${leaf.length} bytes`;
    });
    await step("The proof is for this entry", () => {
      if (proof.index !== BigInt(form.dataset.index)) throw new Error(`it is for entry ${proof.index}`);
    });
    await step("The checkpoint is this log's and signed with its key", async () => {
      if (note.origin !== vkey.name) throw new Error(`it is of ${note.origin}`);
      await checkSignature(note, vkey);
      return `${note.size} entries`;
    });
    await step("The entry stands in the tree of the checkpoint", async () => {
      const root = await rootFrom(leaf, proof.index, note.size, proof.hashes);
      if (!same(root, note.root)) throw new Error("the tree has another root");
      return hex(root).slice(0, 16) + "…";
    });
  } catch {
    return null; // the failed step says why
  }
  return leaf;
}

function showEntry(leaf) {
  const entry = JSON.parse(new TextDecoder().decode(leaf));
  document.getElementById("entry").textContent = JSON.stringify(entry, null, 2);
  document.getElementById("entry-note").textContent = "Written anew from the bytes that this browser verified.";
}

for (const form of document.querySelectorAll("form[data-proof]")) {
  const stored = localStorage.getItem(STORED_KEY);
  if (stored) {
    const known = stored === form.elements.vkey.value;
    document.getElementById("key-note").textContent =
      "The one shown last verified an entry in this browser." + (known ? "" : " This server now names another one as its own.");
    form.elements.vkey.value = stored;
  }
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const entered = form.elements.vkey.value.trim();
    const leaf = await verify(form, document.getElementById("verify-steps"));
    if (!leaf) return;
    localStorage.setItem(STORED_KEY, entered); // only a key that verified something replaces the one before
    showEntry(leaf);
  });
}
