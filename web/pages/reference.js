'use strict'

const dark = matchMedia('(prefers-color-scheme: dark)').matches
document.documentElement.classList.toggle('dark-mode', dark)

const teal = dark ? '#4fd1c5' : '#0b6e6e'
const text = dark ? '#e4e6e6' : '#1d2b2b'
const quiet = dark ? '#a9b4b4' : '#4a5c5c'
const ground = dark ? '#15191b' : '#ffffff'
const raised = dark ? '#1e2427' : '#f4f7f7'

const theme = {
  spacing: { unit: 5, sectionHorizontal: 36, sectionVertical: 18 },
  breakpoints: { medium: '60rem', large: '85rem' },
  colors: {
    primary: { main: teal },
    text: { primary: text, secondary: quiet },
    border: { dark: dark ? '#39444a' : '#d5dede', light: dark ? '#2b3439' : '#e6ecec' },
    http: { get: '#1b7a3d', post: '#0b63a5', put: '#8a5a00', patch: '#8a5a00', delete: '#b3261e', head: '#6b4aa0' },
    success: { main: dark ? '#5cc98a' : '#1b6e3a' },
    error: { main: dark ? '#ff8f85' : '#b3261e' },
  },
  schema: { nestedBackground: raised, typeNameColor: quiet, typeTitleColor: quiet, requireLabelColor: dark ? '#ff8f85' : '#b3261e', linesColor: dark ? '#4a6a68' : '#a9c7c5' },
  sidebar: { width: '290px', backgroundColor: raised, textColor: text, activeTextColor: teal },
  rightPanel: { backgroundColor: dark ? '#0f1315' : '#1f2a2c', width: '42%' },
  typography: {
    fontSize: '15px', lineHeight: '1.55', fontFamily: 'system-ui, sans-serif',
    headings: { fontFamily: 'system-ui, sans-serif', fontWeight: '600' },
    code: { fontSize: '13px', fontFamily: 'ui-monospace, monospace', color: dark ? '#f0a58f' : '#9c2f12', backgroundColor: dark ? '#262d31' : '#eef3f3', wrap: true },
    links: { color: teal, visited: teal, hover: teal },
  },
}

Redoc.init('openapi.json', {
  theme, scrollYOffset: '.bar', expandResponses: '200', hideDownloadButtons: true, nativeScrollbars: true, requiredPropsFirst: true,
  jsonSamplesExpandLevel: 4, sortTagsAlphabetically: false,
}, document.getElementById('page'))
