// Uploads one file with the published tus-js-client; ends after ABORT_AFTER bytes where that is given, as a dropped line would.
// Usage: node tus_upload.js MODULES ENDPOINT FILE DIGEST [UPLOAD_URL|-] [ABORT_AFTER] [PARTS] < token
const fs = require("fs");
const path = require("path");

const [modules, endpoint, file, digest, uploadUrl, abortAfter, parts] = process.argv.slice(2);
const tus = require(path.join(modules, "tus-js-client"));
const token = fs.readFileSync(0, "utf8").trim();
let started = null;

const upload = new tus.Upload(fs.createReadStream(file), {
  parallelUploads: Number(parts || 1),
  endpoint,
  uploadUrl: uploadUrl && uploadUrl !== "-" ? uploadUrl : null,
  headers: { Authorization: `Bearer ${token}` },
  metadata: { digest, filetype: "application/octet-stream" },
  uploadSize: parts ? null : fs.statSync(file).size, // parts have sizes of their own
  chunkSize: 50000,
  retryDelays: [0, 200, 500, 1000, 2000],
  onProgress: (sent) => {
    if (started === null) started = sent;
  },
  onChunkComplete: (_size, accepted) => {
    if (Number(abortAfter) && accepted >= Number(abortAfter)) {
      console.log(JSON.stringify({ url: upload.url, accepted, started }));
      process.exit(3);
    }
  },
  onError: (error) => {
    console.error(String(error));
    process.exit(1);
  },
  onSuccess: () => console.log(JSON.stringify({ url: upload.url, started })),
});
upload.start();
