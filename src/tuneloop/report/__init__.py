"""Pages, tables and lines on runs, evaluations, plans and advice, from one layer of facts."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # What the page of advice shows.
    from tuneloop.report.advise_html import page_of_advice as page_of_advice

    # The page of advice.
    from tuneloop.report.advise_html import render_advise_page as render_advise_page

    # Kinds of alternatives, in words.
    from tuneloop.report.answer import KINDS as KINDS

    # How a system stands against an alternative, in three to six words.
    from tuneloop.report.answer import outcome_in_short as outcome_in_short

    # The comparison as a table in Markdown, LaTeX or CSV.
    from tuneloop.report.comparison import comparison_as as comparison_as

    # The settings in which runs differ.
    from tuneloop.report.comparison import differing_settings as differing_settings

    # A comparison on the terminal.
    from tuneloop.report.comparison import print_comparison as print_comparison

    # What a line of a run's metrics is.
    from tuneloop.report.facts import LINES as LINES

    # The file of a run's metrics.
    from tuneloop.report.facts import METRICS as METRICS

    # What else an evaluation says in words.
    from tuneloop.report.facts import more_words as more_words

    # A run's files, whatever is missing of them.
    from tuneloop.report.facts import read_run as read_run

    # A model as it is shown.
    from tuneloop.report.head import model_name as model_name

    # The environment of templates that pages share.
    from tuneloop.report.html import page_environment as page_environment

    # What a run's page shows.
    from tuneloop.report.html import page_of as page_of

    # The template of a page.
    from tuneloop.report.html import page_template as page_template

    # The page of a run or an evaluation.
    from tuneloop.report.html import render_report as render_report

    # A script that pages share.
    from tuneloop.report.html import script_part as script_part

    # Write the page of a folder.
    from tuneloop.report.html import write_page as write_page

    # The chart of a comparison, as a file.
    from tuneloop.report.paste import plot_comparison as plot_comparison

    # The verdict as a paragraph for a pull request.
    from tuneloop.report.paste import summary_markdown as summary_markdown

    # What a plan costs.
    from tuneloop.report.plan_terminal import cost_lines as cost_lines

    # A plan on the terminal.
    from tuneloop.report.plan_terminal import print_plan as print_plan

    # What serving takes.
    from tuneloop.report.plan_terminal import serving_lines as serving_lines

    # Until when prices hold.
    from tuneloop.report.plan_terminal import until_kept_words as until_kept_words

    # How a run ended, on the terminal.
    from tuneloop.report.terminal import print_closing as print_closing

__getattr__, __dir__ = door(__name__)
