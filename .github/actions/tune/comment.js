// The summary of a tune as a comment in the pull request; its own earlier comment is replaced.

const fs = require('fs');

const LONGEST = 60000; // GitHub takes 65 536 characters

module.exports = async ({ github, context, core }) => {
  const page = fs.readFileSync(process.env.PAGE, 'utf8');
  const mark = `<!-- alphatune ${encodeURIComponent(process.env.ABOUT)} -->`;
  const cut = page.length <= LONGEST ? page
    : page.slice(0, page.lastIndexOf('\n', LONGEST)) + '\n\n*Cut here: the whole report is in the summary of the run.*\n';
  const body = `${mark}\n${cut}`;
  const pull = { ...context.repo, issue_number: context.issue.number };
  try {
    const comments = await github.paginate(github.rest.issues.listComments, { ...pull, per_page: 100 });
    const earlier = comments.find((comment) => comment.user.type === 'Bot' && comment.body.startsWith(mark));
    if (earlier) {
      await github.rest.issues.updateComment({ ...context.repo, comment_id: earlier.id, body });
    } else {
      await github.rest.issues.createComment({ ...pull, body });
    }
  } catch (error) { // the token of a fork's pull request may not write
    core.warning(`no comment in the pull request: ${error.message} (it takes the permission pull-requests: write)`);
  }
};
