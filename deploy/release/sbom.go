package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// billOfMaterials returns the CycloneDX document of a program: the Go modules that the program itself lists, Go's standard library,
// and the scripts of the documentation pages.
func billOfMaterials(o options, binary string, content []byte) ([]byte, error) {
	info, err := buildinfo.Read(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	scripts, err := pageScripts(o.root)
	if err != nil {
		return nil, err
	}
	self := cdx.Component{
		BOMRef: program, Type: cdx.ComponentTypeApplication, Name: program, Version: o.version,
		Licenses: &cdx.Licenses{{License: &cdx.License{ID: "MIT"}}},
		Hashes:   &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: fmt.Sprintf("%x", sha256.Sum256(content))}},
	}
	parts := []cdx.Component{library("golang", "std", strings.TrimPrefix(info.GoVersion, "go"))}
	for _, module := range info.Deps {
		parts = append(parts, goModule(module))
	}
	parts = append(parts, scripts...)
	refs := make([]string, len(parts))
	for i, p := range parts {
		refs[i] = p.BOMRef
	}
	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{Timestamp: o.at.Format(time.RFC3339), Component: &self}
	bom.Components = &parts
	bom.Dependencies = &[]cdx.Dependency{{Ref: program, Dependencies: &refs}}
	var b bytes.Buffer
	if err := cdx.NewBOMEncoder(&b, cdx.BOMFileFormatJSON).SetPretty(true).Encode(bom); err != nil {
		return nil, fmt.Errorf("the SBOM of %s: %w", binary, err)
	}
	return b.Bytes(), nil
}

// library returns a component that is identified by its package URL.
func library(kind, name, version string) cdx.Component {
	purl := "pkg:" + kind + "/" + name + "@" + strings.ReplaceAll(version, "+", "%2B")
	return cdx.Component{BOMRef: purl, Type: cdx.ComponentTypeLibrary, Name: name, Version: version, PackageURL: purl}
}

func goModule(m *debug.Module) cdx.Component {
	if m.Replace != nil {
		m = m.Replace
	}
	c := library("golang", m.Path, m.Version)
	c.Properties = &[]cdx.Property{{Name: "go.sum", Value: m.Sum}}
	return c
}

// pageScripts returns the npm packages in web/assets. The licences there name them with their versions; package.json lists the
// packages that may be there.
func pageScripts(root string) (list []cdx.Component, err error) {
	text, err := os.ReadFile(filepath.Join(root, "e2e", "pages", "package.json"))
	if err != nil {
		return nil, err
	}
	var project struct{ Dependencies map[string]string }
	if err := json.Unmarshal(text, &project); err != nil {
		return nil, err
	}
	compressed, err := os.Open(filepath.Join(root, "web", "assets", "licenses.txt.gz"))
	if err != nil {
		return nil, err
	}
	defer compressed.Close()
	r, err := gzip.NewReader(compressed)
	if err != nil {
		return nil, err
	}
	licences, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(licences)) {
		name, version, _ := strings.Cut(strings.TrimSpace(line), " ")
		if project.Dependencies[name] == version && version != "" {
			list = append(list, library("npm", name, version))
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("web/assets/licenses.txt.gz names none of the packages in e2e/pages/package.json")
	}
	return list, nil
}
