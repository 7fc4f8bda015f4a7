// Writes web/assets: the compressed libraries of the documentation pages, from the packages of the lock file. With --check it only
// compares, and fails if a file differs.
import { readFileSync, writeFileSync, readdirSync } from 'node:fs'
import { gunzipSync, gzipSync } from 'node:zlib'

const modules = new URL('node_modules/', import.meta.url)
const assets = new URL('../../web/assets/', import.meta.url)
const read = name => readFileSync(new URL(name, modules), 'utf8')
const version = name => JSON.parse(read(`${name}/package.json`)).version

// The source map's reference is removed, because the map is not served and browsers with open developer tools would request it.
const script = name => read(name).replace(/\n?\/\/# sourceMappingURL=\S+\s*$/, '\n')
const style = name => read(name).replace(/\n?\/\*# sourceMappingURL=\S+ \*\/\s*$/, '\n')

// ReDoc requests its makers' logo from another host. Our content policy forbids that, and a browser reports each try.
function redoc() {
  const logo = 'https://cdn.redoc.ly/redoc/logo-mini.svg'
  const text = script('redoc/bundles/redoc.standalone.js')
  if (text.split(logo).length !== 2) throw new Error(`redoc no longer names ${logo} once: look at what it loads now`)
  return text.replace(logo, 'data:image/svg+xml,%3Csvg xmlns=%22http://www.w3.org/2000/svg%22/%3E')
}

const rule = `\n\n${'='.repeat(80)}\n\n`
const licences = [
  `swagger-ui-dist ${version('swagger-ui-dist')}\n\n${read('swagger-ui-dist/NOTICE')}\n${read('swagger-ui-dist/LICENSE')}`,
  read('swagger-ui-dist/swagger-ui-bundle.js.LICENSE.txt'),
  `redoc ${version('redoc')}\n\n${read('redoc/LICENSE')}`,
  read('redoc/bundles/redoc.standalone.js.LICENSE.txt'),
].join(rule)

const files = {
  'swagger-ui.js': script('swagger-ui-dist/swagger-ui-bundle.js'),
  'swagger-ui.css': style('swagger-ui-dist/swagger-ui.css'),
  'redoc.js': redoc(),
  'licenses.txt': licences,
}

if (process.argv.includes('--check')) {
  const there = readdirSync(assets).sort().join(' ')
  const wanted = Object.keys(files).map(name => `${name}.gz`).sort().join(' ')
  if (there !== wanted) throw new Error(`web/assets holds ${there}, and should hold ${wanted}`)
  for (const [name, content] of Object.entries(files)) {
    if (gunzipSync(readFileSync(new URL(`${name}.gz`, assets))).toString() !== content) {
      throw new Error(`web/assets/${name}.gz is not that of the package: node e2e/pages/vendor.mjs writes it anew`)
    }
  }
} else {
  for (const [name, content] of Object.entries(files)) {
    const small = gzipSync(content, { level: 9 })
    writeFileSync(new URL(`${name}.gz`, assets), small)
    console.log(`${name}.gz ${small.length}`)
  }
}
