"""Shared shell of the console's pages: frame, templates, assets, headers. Rooms bring the pages."""

from vanilla_saas.console.navigation import NavigationEntry as NavigationEntry
from vanilla_saas.console.navigation import Room as Room
from vanilla_saas.console.navigation import Viewer as Viewer
from vanilla_saas.console.security import Redirect as Redirect
from vanilla_saas.console.security import page_router as page_router
from vanilla_saas.console.shell import install as install
from vanilla_saas.console.shell import redirect as redirect
from vanilla_saas.console.shell import render as render
