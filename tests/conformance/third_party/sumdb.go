// Checks a C2SP tlog-tiles log with golang.org/x/mod/sumdb alone: note signature, every entry's inclusion, consistency.
// Usage: sumdb FOLDER VKEY [OLDER_CHECKPOINT]
package main

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// tiles reads height-8 tiles; tlog-tiles leaves the height out of the path and may have replaced a partial tile by the full one.
type tiles struct{ folder string }

func (t tiles) Height() int { return 8 }

func (t tiles) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	var all [][]byte
	for _, tile := range wanted {
		path := "tile/" + strings.TrimPrefix(tile.Path(), "tile/8/")
		data, err := os.ReadFile(filepath.Join(t.folder, path))
		if os.IsNotExist(err) {
			data, err = os.ReadFile(filepath.Join(t.folder, strings.Split(path, ".p/")[0]))
		}
		if err != nil {
			return nil, err
		}
		all = append(all, data[:tile.W*tlog.HashSize])
	}
	return all, nil
}

func (t tiles) SaveTiles([]tlog.Tile, [][]byte) {}

func open(file string, verifiers note.Verifiers) tlog.Tree {
	raw, err := os.ReadFile(file)
	must(err)
	signed, err := note.Open(raw, verifiers)
	must(err)
	lines := strings.Split(signed.Text, "\n")
	size, err := strconv.ParseInt(lines[1], 10, 64)
	must(err)
	var tree tlog.Tree
	tree.N = size
	root, err := base64.StdEncoding.DecodeString(lines[2])
	must(err)
	copy(tree.Hash[:], root)
	return tree
}

func entries(folder string, size int64) [][]byte {
	var all [][]byte
	for number := int64(0); int64(len(all)) < size; number++ {
		path := tlog.Tile{H: 8, L: 0, N: number, W: 256}.Path()
		path = "tile/entries/" + strings.TrimPrefix(path, "tile/8/0/")
		if width := size - number*256; width < 256 {
			path += fmt.Sprintf(".p/%d", width)
		}
		data, err := os.ReadFile(filepath.Join(folder, path))
		must(err)
		for len(data) > 0 {
			length := binary.BigEndian.Uint16(data)
			all = append(all, data[2:2+length])
			data = data[2+length:]
		}
	}
	return all
}

func main() {
	folder := os.Args[1]
	verifier, err := note.NewVerifier(os.Args[2])
	must(err)
	verifiers := note.VerifierList(verifier)
	tree := open(filepath.Join(folder, "checkpoint"), verifiers)
	reader := tlog.TileHashReader(tree, tiles{folder})
	root, err := tlog.TreeHash(tree.N, reader)
	must(err)
	if root != tree.Hash {
		must(fmt.Errorf("the tiles lead to %v, the checkpoint says %v", root, tree.Hash))
	}
	for index, leaf := range entries(folder, tree.N) {
		proof, err := tlog.ProveRecord(tree.N, int64(index), reader)
		must(err)
		must(tlog.CheckRecord(proof, tree.N, tree.Hash, int64(index), tlog.RecordHash(leaf)))
	}
	if len(os.Args) > 3 {
		old := open(os.Args[3], verifiers)
		proof, err := tlog.ProveTree(tree.N, old.N, reader)
		must(err)
		must(tlog.CheckTree(proof, tree.N, tree.Hash, old.N, old.Hash))
	}
	fmt.Printf("ok %d\n", tree.N)
}
