// Checks one entry of a log with the published @sigstore/verify package: checkpoint signature and inclusion.
// Usage: node sigstore_verify.js MODULES < {"checkpoint", "key" (SPKI DER, base64), "keyHint" (hex), "origin", "index", "hashes", "leaf"}
const crypto = require("crypto");
const path = require("path");
const fs = require("fs");

const dist = path.join(process.argv[2], "@sigstore", "verify", "dist", "tlog");
const { verifyCheckpoint } = require(path.join(dist, "checkpoint.js"));
const { verifyMerkleInclusion } = require(path.join(dist, "merkle.js"));

const given = JSON.parse(fs.readFileSync(0, "utf8"));
const bytes = (text) => Buffer.from(text, "base64");
const entry = {
  canonicalizedBody: bytes(given.leaf),
  inclusionProof: { checkpoint: { envelope: given.checkpoint }, logIndex: String(given.index), hashes: given.hashes.map(bytes) },
};
const log = {
  logID: Buffer.from(given.keyHint, "hex"),
  baseURL: given.origin,
  publicKey: crypto.createPublicKey({ key: bytes(given.key), format: "der", type: "spki" }),
};
verifyMerkleInclusion(entry, verifyCheckpoint(entry, [log]));
console.log("ok");
